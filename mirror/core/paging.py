"""Pagination of lists that the mirror makes itself (OCI distribution-spec, Listing tags), and of searches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final

from mirror.core.errors import InvalidPage
from mirror.core.links import format_link

_MAX_ENTRIES: Final = 1000


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


@dataclass(frozen=True, slots=True)
class SearchPage:
    """A page of the results of a search.

    Attributes:
        number: from 1.
        size: number of its results.
    """

    MAX_SIZE: ClassVar[int] = 100

    number: int = 1
    size: int = 25

    @classmethod
    def parse(cls, size: str | None, number: str | None) -> SearchPage:
        """Read both as a client sends them; a size above the maximum counts as that. Raises InvalidPage."""
        for text, name in ((size, "n"), (number, "page")):
            if text and not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
                raise InvalidPage(text, f"{name} must be a number from 1")
        return cls(int(number or 1), min(int(size or 25), cls.MAX_SIZE))
