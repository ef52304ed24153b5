"""Which objects of a bucket go first when it is full. Times are seconds since the epoch."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Final

from mirror.core.digest import Digest

_HOUR_S: Final = 3600.0
# What somebody has used within this time is needed, whatever leads to it.
_NEEDED_S: Final = 86400.0


@dataclass(frozen=True, slots=True)
class SweptObject:
    """A blob or manifest of a bucket.

    Attributes:
        used: the last use, or when it was written.
        is_tagged: a tag leads to it.
    """

    digest: Digest
    is_manifest: bool
    size: int
    used: float
    is_tagged: bool


class SweepPlan:
    """Selects, of many objects, those to delete.

    What nobody needs goes first: no tag leads to it, and nobody has used it for a day. Then the least recently used goes, by
    the hour; of one hour the manifests before the blobs, so that no manifest is left without its blobs.

    Args:
        wanted: bytes to delete.
        most: objects to delete at most, which bounds the memory.
    """

    def __init__(self, wanted: int, most: int, now: float) -> None:
        self._wanted = wanted
        self._most = most
        self._needed_since = now - _NEEDED_S
        self._size = 0
        # The last ones to go come first.
        self._heap: list[tuple[tuple[float, ...], int, SweptObject]] = []
        self._offered = 0

    def offer(self, found: SweptObject) -> None:
        """Take one more object into account."""
        if self._wanted <= 0:
            return
        self._offered += 1
        heapq.heappush(self._heap, (self._order(found), self._offered, found))
        self._size += found.size
        while self._heap and (len(self._heap) > self._most or self._size - self._heap[0][2].size >= self._wanted):
            self._size -= heapq.heappop(self._heap)[2].size

    def selected(self) -> list[SweptObject]:
        """The objects to delete, the first one first."""
        return [found for _, _, found in sorted(self._heap, reverse=True)]

    def _order(self, found: SweptObject) -> tuple[float, ...]:
        """The negative of the sort key: the heap gives up the smallest first."""
        is_needed = found.is_tagged or found.used >= self._needed_since
        return (-is_needed, -(found.used // _HOUR_S), -(not found.is_manifest), -found.size)
