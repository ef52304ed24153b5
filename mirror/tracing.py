"""The identifier of the request being handled, and the mirrors that it has passed; in responses, logs and upstream requests."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterable
from contextvars import ContextVar

from mirror.errors import RequestLoop

request_id: ContextVar[str] = ContextVar("request_id", default="")
via: ContextVar[str] = ContextVar("via", default="")


class UpstreamNote:
    """The upstream that was asked last for a request; empty if none was. The tasks that a request starts share its note."""

    __slots__ = ("name",)

    def __init__(self) -> None:
        self.name = ""


upstream_note: ContextVar[UpstreamNote | None] = ContextVar("upstream_note", default=None)

_PLAIN = re.compile(r"[A-Za-z0-9._:-]{1,64}", re.ASCII)


class RequestIds:
    """Identifiers of requests: the client's own if it is short and plain, else a generated one."""

    def __init__(self) -> None:
        self._prefix = os.urandom(4).hex()
        self._numbers = itertools.count(1)

    def name(self, given: str | None) -> str:
        """The identifier of a request with `given` as its X-Request-Id."""
        if given is not None and _PLAIN.fullmatch(given):
            return given
        return f"{self._prefix}-{next(self._numbers):x}"


_HOP = re.compile(r"1\.1 registry-mirror-[0-9a-f]{1,32}", re.ASCII)
_MAX_HOPS = 8


class ViaChain:
    """The mirrors that a request has passed (RFC 9110 section 7.6.3), with this one at the end.

    Args:
        name: hexadecimal, unique to this mirror.
    """

    def __init__(self, name: str) -> None:
        self._own = f"1.1 registry-mirror-{name}"

    def enter(self, values: Iterable[str]) -> None:
        """Record the Via headers of the request being handled; raises RequestLoop if it has passed this mirror before."""
        hops = [hop for value in values for part in value.split(",") if _HOP.fullmatch(hop := part.strip())]
        if self._own in hops:
            raise RequestLoop("this request has been here before: an upstream of this mirror has this mirror as its upstream")
        if len(hops) >= _MAX_HOPS:
            raise RequestLoop(f"this request has come through {len(hops)} mirrors, which can only be a circle")
        via.set(", ".join([*hops, self._own]))
