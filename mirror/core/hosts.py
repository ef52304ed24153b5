"""The host names by which requests may name an address on loopback.

A web page whose own name resolves to this host (DNS rebinding) sends requests to it as to its own origin, and reads the
responses. Its name stands in `Host` (RFC 9110 section 7.2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from mirror.core.errors import InvalidInput
from mirror.core.networks import parse_address

_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*", re.ASCII)
_PORT = re.compile(r":[0-9]{0,5}\Z", re.ASCII)
# The name of the host on Docker Desktop.
_ALWAYS = frozenset({"localhost", "host.docker.internal"})


class InvalidHost(InvalidInput):
    """Not the name of a host."""

    what = "host name"


def parse_host(text: str) -> str:
    """A host's name in lower case, without a port or a dot at its end. Raises InvalidHost."""
    name = text.lower().removesuffix(".")
    if not _NAME.fullmatch(name):
        raise InvalidHost(text, "expected a name like mirror.example.com, without scheme and port")
    return name


class HostNames:
    """The names of an address on loopback.

    Args:
        names: besides those that cannot be registered; `*.` at the beginning is one label, as in certificates.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        self._names = _ALWAYS | {name.lower() for name in names}

    def include(self, header: str | None) -> bool:
        """Whether a Host header names this address. A missing or empty one does: no web page sends that."""
        if not header:
            return True
        name = _PORT.sub("", header.strip().lower())
        if name.startswith("[") and name.endswith("]"):
            return parse_address(name[1:-1]) is not None
        name = name.removesuffix(".")
        if parse_address(name) is not None:
            return True
        if not _NAME.fullmatch(name):
            return False
        _, dot, rest = name.partition(".")
        return not dot or name in self._names or name.endswith(".localhost") or f"*.{rest}" in self._names
