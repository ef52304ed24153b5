"""Pagination of lists that the mirror makes itself (OCI distribution-spec, Listing tags)."""

from __future__ import annotations

from mirror.core.errors import InvalidPage
from mirror.core.links import format_link

_MAX_ENTRIES = 1000


def page_size(n: str | None) -> int:
    """The requested number of entries, at most a thousand.

    Raises:
        InvalidPage: `n` is not a number.
    """
    if n is None:
        return _MAX_ENTRIES
    if not (n.isascii() and n.isdigit() and len(n) < 10):
        raise InvalidPage(n, "n must be a number of entries")
    return min(int(n), _MAX_ENTRIES)


def page(names: list[str], n: str | None, last: str | None) -> tuple[list[str], bool]:
    """The entries after `last`, at most `n` and at most a thousand; and whether more follow.

    Raises:
        InvalidPage: `n` is not a number.
    """
    count = page_size(n)
    rest = [name for name in names if last is None or name > last]
    return rest[:count], 0 < count < len(rest)


def page_link(path: str, count: int, last: str) -> str:
    """The Link header to the page after `last`."""
    return format_link(path, {"n": str(count), "last": last})
