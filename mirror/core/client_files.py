"""What becomes of a file of a client's configuration that exists already."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

# The first line of the files that belong to the mirror alone.
MARKER = "# Written by `registry-mirror client-config`, which replaces this file."
_MIRRORS = "registry-mirrors"


class Unmergeable(ValueError):
    """A file that cannot be changed without losing something; the message says why."""


class Merge(Enum):
    """How a file is combined with one that exists."""

    # Its key is merged into Docker's daemon.json.
    DAEMON_JSON = auto()
    # It belongs to the mirror alone, and replaces an earlier one.
    OWN_FILE = auto()
    # It holds the client's other settings as well, so that it is only ever created.
    CREATE = auto()


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """A file of a client's configuration, or a part of one.

    Attributes:
        path: absolute, on the client's host.
    """

    path: str
    text: str
    merge: Merge


def combine(wanted: ConfigFile, existing: str | None) -> str:
    """Return the content that the file gets; the existing one if nothing changes.

    Args:
        existing: its content; None if there is no such file.

    Raises:
        Unmergeable: the existing file has to stay as it is.
    """
    if existing is None or not existing.strip():
        return wanted.text
    if wanted.merge is Merge.DAEMON_JSON:
        return _merge_daemon_json(existing, json.loads(wanted.text)[_MIRRORS][0])
    if _same(existing, wanted.text):
        return existing
    if wanted.merge is Merge.OWN_FILE and existing.startswith(MARKER):
        return wanted.text
    raise Unmergeable("has other content: merge it by hand")


def _same(one: str, other: str) -> bool:
    """Whether two texts have the same lines, but for comments and white space at the end."""
    return _lines(one) == _lines(other)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _merge_daemon_json(existing: str, url: str) -> str:
    """Put a mirror before the others in `registry-mirrors`; all other keys stay, in their order."""
    if existing.startswith("\ufeff"):
        raise Unmergeable("is no JSON that Docker can read: it begins with a byte order mark")
    try:
        settings = json.loads(existing, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise Unmergeable(f"is no JSON that can be read: {error}") from error
    if not isinstance(settings, dict):
        raise Unmergeable("is no JSON object")
    mirrors = settings.get(_MIRRORS, [])
    if not isinstance(mirrors, list) or not all(isinstance(mirror, str) for mirror in mirrors):
        raise Unmergeable(f"{_MIRRORS} is no list of URLs")
    if any(mirror.rstrip("/") == url for mirror in mirrors):
        return existing
    settings[_MIRRORS] = [url, *mirrors]
    try:
        text = json.dumps(settings, indent=_indent(existing), ensure_ascii=False) + "\n"
        text.encode()
    except ValueError as error:
        raise Unmergeable(f"has values that cannot be written again: {type(error).__name__}") from error
    return text


def _refuse(text: str) -> float:
    raise ValueError(f"{text} is no number of JSON (RFC 8259 section 6)")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    settings = dict(pairs)
    if len(settings) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return settings


def _indent(text: str) -> str:
    """Return the indentation of the first indented line."""
    found = re.search(r"\n([ \t]+)\S", text)
    return found.group(1) if found else "  "
