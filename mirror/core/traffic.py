"""What a mirror has answered over time: the growth of its counts, and sums of that over equal intervals."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Final

KEPT_MINUTES: Final = 7 * 24 * 60
"""Counts are kept for a week."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Counts of manifests and blobs.

    Attributes:
        pulls: answers that were no error.
        hits: those of them that came from the store.
        served: bytes to clients.
        fetched: bytes from upstreams.
    """

    pulls: int = 0
    hits: int = 0
    served: int = 0
    fetched: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def since(self, earlier: Traffic) -> Traffic:
        """Return the growth of each count since an earlier time; none of a count that has become smaller."""
        return Traffic(*(max(0, getattr(self, field.name) - getattr(earlier, field.name)) for field in fields(self)))

    @property
    def hit_ratio(self) -> float | None:
        """The share of the hits; None without a pull."""
        return self.hits / self.pulls if self.pulls else None

    @property
    def saved(self) -> int:
        """Bytes that clients got and upstream did not have to send."""
        return max(0, self.served - self.fetched)


@dataclass(frozen=True, slots=True)
class Totals:
    """The counts since the start of a mirror, as they were in a minute.

    Attributes:
        minute: since the epoch.
        run: the start of the mirror in nanoseconds since the epoch, which tells its runs apart.
    """

    minute: int
    run: int
    traffic: Traffic

    @property
    def began(self) -> int:
        """The minute in which the run began."""
        return self.run // 60_000_000_000


def growth(rows: Iterable[Totals], now: int) -> list[tuple[int, Traffic]]:
    """Return the growth of the counts for each row, in order of time, with the minute of the row.

    A run begins at zero. If the first rows of a run are no longer kept, its oldest row counts as no growth.

    Args:
        now: the current minute; rows of a later minute were written by a wrong clock and are ignored.
    """
    last: dict[int, Traffic] = {}
    found = []
    for row in sorted((row for row in rows if row.minute <= now), key=lambda row: row.minute):
        before = last.get(row.run, Traffic() if row.began > now - KEPT_MINUTES else row.traffic)
        last[row.run] = row.traffic
        found.append((row.minute, row.traffic.since(before)))
    return found


def intervals(grown: Sequence[tuple[int, Traffic]], end: int, width: int, count: int) -> list[Traffic]:
    """Return sums over `count` intervals of `width` minutes each; the last one contains the minute `end`.

    Intervals begin at multiples of their width, so that they stay the same while time goes on.
    """
    first = end // width - count + 1
    sums = [Traffic()] * count
    for minute, traffic in grown:
        position = minute // width - first
        if 0 <= position < count:
            sums[position] += traffic
    return sums
