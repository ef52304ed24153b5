"""Decides how many bytes to evict: none for a goal that cannot be reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reason = Literal["max_size", "min_free"]


@dataclass(frozen=True, slots=True)
class Goal:
    """Bytes to evict.

    Attributes:
        wanted: to reach the low-water mark, so that the next eviction is some time away.
        needed: to keep the limit itself; at most `wanted`.
    """

    wanted: int = 0
    needed: int = 0

    def within(self, available: int) -> int:
        """The bytes to evict if so many are available; 0 if that does not reach the limit."""
        return next((size for size in (self.wanted, self.needed) if size <= available), 0)


@dataclass(frozen=True, slots=True)
class Shortage:
    """The bytes by which a store misses its bounds.

    Attributes:
        size: used above `storage.max_size`.
        free: missing from `storage.min_free`, whichever program has used them.
    """

    size: Goal = Goal()
    free: Goal = Goal()

    def __bool__(self) -> bool:
        return self.size.wanted > 0 or self.free.wanted > 0

    @property
    def bytes(self) -> int:
        """The bytes that both bounds miss together, for comparisons."""
        return self.size.needed + self.free.needed


@dataclass(frozen=True, slots=True)
class Evictable:
    """Bytes that can be evicted.

    Attributes:
        unpinned: of content that is not pinned.
        pinned: of pinned content.
    """

    unpinned: int = 0
    pinned: int = 0


@dataclass(frozen=True, slots=True)
class Partials:
    """Bytes that partial blobs have reserved.

    Attributes:
        idle: of downloads without progress for some time, which may be deleted.
        busy: of the others.
    """

    idle: int = 0
    busy: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to evict.

    Attributes:
        size: bytes in all.
        with_pins: bytes for which pinned content is evicted, too, if nothing else is left; at most `size`.
        reason: the bound that needs most of it.
        unreachable: the bounds that eviction cannot restore.
    """

    size: int = 0
    with_pins: int = 0
    reason: Reason = "max_size"
    unreachable: frozenset[Reason] = frozenset()


def plan(shortage: Shortage, evictable: Evictable, *, both: bool = False) -> Plan:
    """Decide what to evict.

    Nothing is evicted for a bound that cannot be restored. For its own size the store evicts content that is not pinned down to
    the low-water mark, and pinned content only to keep the limit. For free space pinned content is never evicted: another program
    that has filled the disk would fill it again.

    Args:
        both: evict only if both goals can be reached, as for a file that has to fit.
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
