"""Which request gets the next connection to an upstream, and which one yields. Times are milliseconds on a clock of the host."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

# For each such time a waiter counts as more urgent by one step, so that none starves.
_AGING_MS: Final = 5_000
# A holder that waited long enough to pass more urgent ones keeps its connection at least so long.
_KEPT_MS: Final = 5_000
# A process that has not served its queue for so long hangs, or was stopped: the others ignore it.
_SILENT_MS: Final = 1_000
# Counts are numbers of 32 bits: times begin anew after seven weeks.
_WRAP: Final = 1 << 32


class Urgency(enum.IntEnum):
    """How urgently bytes of a blob are needed; less is more urgent."""

    CLIENT = 0
    """A client reads them."""
    PREFETCH = 1
    """A client has just received the manifest that names them, or reads them while another connection fetches the same blob."""
    ABANDONED = 2
    """Clients requested them and disconnected."""
    SYNC = 3
    """No client has requested them."""


@dataclass(frozen=True, slots=True)
class Waiter:
    """A request that waits for a connection."""

    urgency: Urgency
    since: int

    def rank(self, now: int) -> tuple[int, int]:
        """The sort key: the most urgent waiter comes first, and of equal ones the one that has waited longest."""
        waited = elapsed(self.since, now)
        return max(0, self.urgency - waited // _AGING_MS), -waited


@dataclass(frozen=True, slots=True)
class Holder:
    """A request that has a connection.

    Attributes:
        aged: it got the connection before more urgent ones, since it had waited long.
        yielding: its connection has been withdrawn, and is not given back yet.
    """

    urgency: Urgency
    since: int
    aged: bool = False
    yielding: bool = False


@dataclass(frozen=True, slots=True)
class Standing:
    """What a process publishes about its queue.

    Attributes:
        best: the rank of its first waiter, None without one.
        since: when that waiter began to wait.
        seen: when the process last served its queue.
    """

    best: int | None
    since: int
    seen: int

    def is_live(self, now: int) -> bool:
        """Whether the process still serves its queue."""
        return elapsed(self.seen, now) < _SILENT_MS


def elapsed(since: int, now: int) -> int:
    """Milliseconds from one time to another, both modulo 2^32; 0 if `since` is in the future."""
    passed = (now - since) % _WRAP
    return passed if passed < _WRAP // 2 else 0


def first(waiters: Sequence[Waiter], now: int, *, prefetch: bool = True) -> int | None:
    """The index of the next waiter; None if there is none.

    Args:
        prefetch: whether one more connection may be used for prefetching.
    """
    allowed = [index for index, waiter in enumerate(waiters) if prefetch or waiter.urgency is not Urgency.PREFETCH]
    return min(allowed, key=lambda index: waiters[index].rank(now), default=None)


def precedes(own: Waiter, others: Iterable[Standing], now: int) -> bool:
    """Whether the first waiter of this process comes before those of all others."""
    rank = own.rank(now)
    return not any(
        (other.best, -elapsed(other.since, now)) < rank for other in others if other.best is not None and other.is_live(now)
    )


def to_yield(holders: Sequence[Holder], lacking: int, now: int) -> list[int]:
    """The indexes of the holders that give their connection to waiting clients.

    Only holders that no client reads from yield: the least urgent first, and of equal ones the one that got its connection last.

    Args:
        lacking: how many connections clients lack.
    """
    able = [
        index
        for index, holder in enumerate(holders)
        if holder.urgency is not Urgency.CLIENT
        and not holder.yielding
        and not (holder.aged and elapsed(holder.since, now) < _KEPT_MS)
    ]
    able.sort(key=lambda index: (-holders[index].urgency, elapsed(holders[index].since, now)))
    return able[: max(0, lacking)]
