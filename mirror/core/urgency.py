"""Who gets the next connection to an upstream, and who has to give one back. Times are milliseconds on one clock of the host."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

# After so long a wait one counts as more urgent by a step, so that nobody is passed over for ever.
_AGING_MS: Final = 5_000
# What has waited so long that it passed more urgent ones keeps its connection at least so long.
_KEPT_MS: Final = 5_000
# A process that has not looked at its queue for so long hangs, or was stopped: nobody waits for it.
_SILENT_MS: Final = 1_000
# Counts are numbers of 32 bits: times begin anew after seven weeks.
_WRAP: Final = 1 << 32


class Urgency(enum.IntEnum):
    """How urgently bytes of a blob are wanted; less is more urgent."""

    CLIENT = 0
    """A client reads them."""
    PREFETCH = 1
    """A client has just been given the manifest that names them."""
    ABANDONED = 2
    """Clients wanted them, and have left."""
    SYNC = 3
    """They are fetched ahead of all clients."""


@dataclass(frozen=True, slots=True)
class Waiter:
    """Somebody who waits for a connection."""

    urgency: Urgency
    since: int

    def rank(self, now: int) -> tuple[int, int]:
        """The least is the next: the most urgent one, and of those who waited longest."""
        waited = elapsed(self.since, now)
        return max(0, self.urgency - waited // _AGING_MS), -waited


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody who has a connection.

    Attributes:
        aged: it was more urgent ones that had to wait for this one to get it.
        yielding: it is about to give it back.
    """

    urgency: Urgency
    since: int
    aged: bool = False
    yielding: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """What a process says of its queue.

    Attributes:
        best: the rank that its first waiter has, None if nobody waits.
        since: when that one began to wait.
        seen: when the process looked at its queue last.
    """

    best: int | None
    since: int
    seen: int

    def is_live(self, now: int) -> bool:
        """Whether the process still looks at its queue."""
        return elapsed(self.seen, now) < _SILENT_MS


def elapsed(since: int, now: int) -> int:
    """Milliseconds from one time to another, both modulo 2^32; 0 for one that is yet to come."""
    passed = (now - since) % _WRAP
    return passed if passed < _WRAP // 2 else 0


def first(waiters: Sequence[Waiter], now: int, *, prefetch: bool = True) -> int | None:
    """Which of those that wait is the next, by its index; None if none of them may.

    Args:
        prefetch: whether one more connection may be given for prefetching.
    """
    allowed = [index for index, waiter in enumerate(waiters) if prefetch or waiter.urgency is not Urgency.PREFETCH]
    return min(allowed, key=lambda index: waiters[index].rank(now), default=None)


def precedes(own: Waiter, others: Iterable[Standing], now: int) -> bool:
    """Whether the first waiter of this process comes before those of all others."""
    rank = own.rank(now)
    return not any(
        (other.best, -elapsed(other.since, now)) < rank for other in others if other.best is not None and other.is_live(now)
    )


def to_yield(holders: Sequence[Holder], wanted: int, now: int) -> list[int]:
    """Which of those that have a connection are to give it to clients that wait, by their indexes.

    Only what no client reads yields: the least urgent first, and of those the one that has had its connection
    for the shortest time.

    Args:
        wanted: how many connections are lacking.
    """
    able = [
        index
        for index, holder in enumerate(holders)
        if holder.urgency is not Urgency.CLIENT
        and not holder.yielding
        and not (holder.aged and elapsed(holder.since, now) < _KEPT_MS)
    ]
    able.sort(key=lambda index: (-holders[index].urgency, elapsed(holders[index].since, now)))
    return able[: max(0, wanted)]
