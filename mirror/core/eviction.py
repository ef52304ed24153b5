"""What to evict: the order of blobs, and how many bytes, which is none where no goal can be reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reason = Literal["max_size", "min_free"]


@dataclass(frozen=True, slots=True)
class Goal:
    """Bytes that have to go.

    Attributes:
        wanted: to come down to the low-water mark, so that it takes a while until the next time.
        needed: to keep the limit itself; at most `wanted`.
    """

    wanted: int = 0
    needed: int = 0

    def within(self, available: int) -> int:
        """What is worth evicting of so many bytes; 0 if they do not do."""
        return next((size for size in (self.wanted, self.needed) if size <= available), 0)


@dataclass(frozen=True, slots=True)
class Shortage:
    """By how much a store misses its bounds.

    Attributes:
        size: above what it may take itself (`storage.max_size`).
        free: below what it has to leave on the disk (`storage.min_free`), whoever has taken it.
    """

    size: Goal = Goal()
    free: Goal = Goal()

    def __bool__(self) -> bool:
        return self.size.wanted > 0 or self.free.wanted > 0


@dataclass(frozen=True, slots=True)
class Evictable:
    """Bytes that could go.

    Attributes:
        unpinned: of what is not pinned.
        pinned: of what is.
    """

    unpinned: int = 0
    pinned: int = 0


@dataclass(frozen=True, slots=True)
class Partials:
    """Bytes that blobs in the making have reserved.

    Attributes:
        idle: of those that nobody has filled for a while, which may go.
        busy: of the others.
    """

    idle: int = 0
    busy: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to evict.

    Attributes:
        size: bytes in all.
        with_pins: bytes for which pinned content goes, too, if nothing else is left; at most `size`.
        reason: the bound that most of it is for.
        unreachable: the bounds that evicting cannot bring back.
    """

    size: int = 0
    with_pins: int = 0
    reason: Reason = "max_size"
    unreachable: frozenset[Reason] = frozenset()


def eviction_key(last_used: float, weight: int, *, pinned: bool) -> tuple[float, float, float]:
    """Return the sort key of a blob by its usage, no part of it negative: the blob with the smallest key is evicted first.

    The order is least recently used first, pinned blobs last, and the lighter of two first: a manifest before its layers. Another
    policy is another function.

    Args:
        last_used: seconds since the epoch.
        weight: bytes.
    """
    return pinned, last_used, weight


def plan(shortage: Shortage, evictable: Evictable, *, both: bool = False) -> Plan:
    """Decide what to evict.

    Nothing goes for a bound that everything together could not bring back. The size is the store's own doing: it comes down to
    the low-water mark by what is not pinned, and to the limit by what is pinned, too. The free space is also others': what is
    pinned never goes for it, and another program that has filled the disk would fill it again.

    Args:
        both: nothing less than both goals helps, as for a file that has to fit.
    """
    everything = evictable.unpinned + evictable.pinned
    lost: dict[Reason, bool] = {
        "max_size": shortage.size.needed > everything,
        "min_free": shortage.free.needed > evictable.unpinned,
    }
    unreachable = frozenset(reason for reason, is_lost in lost.items() if is_lost)
    if both and unreachable:
        return Plan(unreachable=unreachable)
    size = shortage.size.within(evictable.unpinned) or Goal(shortage.size.needed, shortage.size.needed).within(everything)
    free = shortage.free.within(evictable.unpinned)
    with_pins = size if size > evictable.unpinned else 0
    return Plan(max(size, free), with_pins, "max_size" if size >= free else "min_free", unreachable)
