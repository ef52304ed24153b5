"""The held images as the page lists them: found by a text, sorted, and in pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Final

from mirror.admin.registry_storage import RegistryTotals
from mirror.core.search import distance, search_text
from mirror.storage.images import Image

PAGE_SIZE: Final = 50
"""Images on one page."""
_MAX_QUERY: Final = 300
_GLOB: Final = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Row:
    """A held image.

    Attributes:
        size: bytes of all its content.
        pulled: the last pull, in seconds since the epoch.
    """

    name: str
    size: int
    pulled: float
    complete: bool

    @property
    def path(self) -> str:
        """The name without registry, tag and digest."""
        repository = self.name.partition("@")[0].partition("/")[2]
        head, slash, last = repository.rpartition("/")
        return head + slash + last.partition(":")[0]


@dataclass(frozen=True, slots=True)
class Page:
    """A part of the list.

    Attributes:
        number: from 1.
        pages: the number of pages, at least 1.
        found: images that were found, on all pages.
        size: bytes of those.
    """

    rows: tuple[Row, ...]
    number: int
    pages: int
    found: int
    size: int


ORDERS: Final[dict[str, tuple[str, Callable[[Row, str], Any]]]] = {
    "name": ("name, the best match first", lambda row, text: (distance(row.path, text), row.name)),
    "size": ("size, the largest first", lambda row, _: (-row.size, row.name)),
    "pulled": ("last pull, the latest first", lambda row, _: (-row.pulled, row.name)),
    "unused": ("last pull, the oldest first", lambda row, _: (row.pulled, row.name)),
}
"""What the list can be sorted by: a title and a key of a row and the text that was searched for."""


class Catalog:
    """An immutable list of images.

    Attributes:
        totals: of the registries, the largest first; see `RegistryTotals`.
    """

    def __init__(self, images: Iterable[Image], registries: list[dict[str, Any]]) -> None:
        counted = RegistryTotals()
        listed = counted.counting(images)
        self.rows = tuple(Row(image.name, image.size, image.pulled, image.complete) for image in listed)
        self.totals = sorted(counted.totals(registries), key=lambda total: (-total["bytes"], total["registry"]))

    def page(self, query: str, order: str, number: int) -> Page:
        """Return a page of the images that match.

        Args:
            query: a part of the name in any case, or a glob over all of it.
            order: one of `ORDERS`.
            number: from 1; beyond the last page the last one is returned.
        """
        text, key = query[:_MAX_QUERY].strip().lower(), ORDERS[order][1]
        searched = search_text(text)
        rows = sorted(self._matching(text), key=lambda row: key(row, searched))
        pages = max(1, -(-len(rows) // PAGE_SIZE))
        number = min(max(1, number), pages)
        shown = tuple(rows[(number - 1) * PAGE_SIZE : number * PAGE_SIZE])
        return Page(shown, number, pages, len(rows), sum(row.size for row in rows))

    def _matching(self, query: str) -> Sequence[Row]:
        if not query:
            return self.rows
        if _GLOB & set(query):
            return [row for row in self.rows if fnmatchcase(row.name.lower(), query)]
        return [row for row in self.rows if query in row.name.lower()]
