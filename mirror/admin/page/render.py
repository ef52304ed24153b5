"""Renders the templates of the page. Every value is escaped: names, tags and errors are the words of clients and upstreams."""

from __future__ import annotations

import functools
import hashlib
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from mirror.core.units import about, format_bytes, format_duration

if TYPE_CHECKING:
    from jinja2 import Environment

_HERE: Final = Path(__file__).parent
STATIC: Final = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}
"""The files that pages load, each with its media type."""
# Of a digest: enough to find it.
_SHOWN_DIGITS: Final = 12


def render(template: str, values: Mapping[str, Any]) -> bytes:
    """Return a page. Takes some milliseconds, the first time a tenth of a second; belongs in a thread."""
    text = _environment().get_template(template).render(values)
    # A name of a file or an error of a library may have what is no text.
    return text.encode("utf-8", "replace")


@functools.cache
def static(name: str) -> bytes:
    """Return the content of a file of `STATIC`."""
    return (_HERE / "static" / name).read_bytes()


@functools.cache
def version_of(name: str) -> str:
    """Return what changes with the content of a file of `STATIC`."""
    return hashlib.sha256(static(name)).hexdigest()[:12]


@functools.cache
def _environment() -> Environment:
    # Only who opens a page needs the library.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415

    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {
        "ago": _ago, "until": _until, "bytes": _bytes, "count": _count, "date": _date, "percent": _percent, "short": _short,
        "duration": format_duration,
    }  # fmt: skip
    environment.filters.update(filters)
    environment.globals.update({"url": url, "file": _file})
    return environment


def url(path: str, **query: object) -> str:
    """Return a path of this address with a query; values that are None or empty are left out."""
    given = {key: value for key, value in query.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


def _file(name: str) -> str:
    return f"/static/{name}?v={version_of(name)}"


def _ago(when: float | None) -> str:
    return "never" if not when else f"{about(time.time() - when)} ago"


def _until(when: float) -> str:
    return f"in {about(when - time.time())}" if when > time.time() else "now"


def _bytes(count: float | None) -> str:
    """Return a size with a space that does not break before its unit."""
    return re.sub(r"(?<=[0-9])(?=[A-Z])", "\N{NO-BREAK SPACE}", format_bytes(int(count or 0)))


def _count(number: float) -> str:
    return f"{int(number):,}"


def _date(when: float | None) -> str:
    """Return a time in the form of the attribute `datetime`, and empty for none or one beyond the calendar."""
    try:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when)) if when else ""
    except (OverflowError, OSError, ValueError):
        return ""


def _percent(share: float | None) -> str:
    """Return a share in whole per cent; 100 % and 0 % only if it is exactly that."""
    if share is None:
        return "none"
    rounded = round(share * 100)
    return f"{min(99, rounded) if share < 1 else max(1, rounded) if share > 0 else rounded} %"


def _short(digest: str) -> str:
    algorithm, _, digits = digest.partition(":")
    return f"{algorithm}:{digits[:_SHOWN_DIGITS]}" if digits else digest[: _SHOWN_DIGITS + 7]
