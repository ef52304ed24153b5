"""What the connections for blobs of one process share: the buffers, and the rate at which bytes may arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from mirror.core.byte_rate import ByteRate

LARGEST = 2 << 20
SMALLEST = 16 << 10
_TOTAL = 12 << 20


class BufferPool:
    """Lends buffers: large ones while few are lent, small ones while many are.

    A buffer costs page faults when it is new, so those that come back are kept, up to `total` bytes.

    Args:
        total: bytes that are lent or kept. When they are used up, buffers of `SMALLEST` bytes are lent all the same, so that
            every connection makes progress; how many there can be is bounded by the number of connections.

    Attributes:
        lent: bytes that are lent just now.
    """

    def __init__(self, total: int = _TOTAL) -> None:
        self.lent = 0
        self._total = total
        self._kept: dict[int, list[bytearray]] = {}
        self._kept_bytes = 0

    def lend(self, least: int = 0, most: int = LARGEST) -> bytearray:
        """A buffer of a power of two of bytes; its content is undefined.

        Args:
            least: it has so many bytes, if that is not more than the largest.
            most: it is not larger than these bytes need: a new buffer costs as much as it is large.
        """
        size = self._size()
        while size > SMALLEST and size >= 2 * most:
            size //= 2
        while size < min(least, LARGEST):
            size *= 2
        self.lent += size
        kept = self._kept.get(size)
        if not kept:
            self._make_room(size)
            return bytearray(size)
        self._kept_bytes -= size
        return kept.pop()

    def give_back(self, buffer: bytearray) -> None:
        """Return a buffer to which nothing refers."""
        size = len(buffer)
        self.lent -= size
        if self.lent + self._kept_bytes + size <= self._total:
            self._kept.setdefault(size, []).append(buffer)
            self._kept_bytes += size

    def forget(self, buffer: bytearray) -> None:
        """Do not use a buffer again: something may still refer to it."""
        self.lent -= len(buffer)

    def _size(self) -> int:
        """A quarter of what is left at most, so that the next borrower gets a large one, too."""
        size, left = LARGEST, self._total - self.lent
        while size > SMALLEST and size * 4 > left:
            size //= 2
        return size

    def _make_room(self, size: int) -> None:
        for kept in self._kept.values():
            while kept and self.lent + self._kept_bytes > self._total:
                self._kept_bytes -= len(kept.pop())


@dataclass(frozen=True)
class Intake:
    """The buffers and the rate of one process."""

    buffers: BufferPool
    rate: ByteRate


class Throttle:
    """Keeps one connection within the rate.

    Args:
        resume: called when the connection may receive again.
    """

    def __init__(self, rate: ByteRate, resume: Callable[[], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._rate = rate
        self._resume = resume
        self._timer: asyncio.TimerHandle | None = None

    @property
    def remaining(self) -> float:
        """Seconds until the connection may receive again; 0 if it may."""
        return 0.0 if self._timer is None else max(0.0, self._timer.when() - self._loop.time())

    @property
    def is_closed(self) -> bool:
        """Whether the connection may not receive."""
        return self._timer is not None

    @property
    def is_limited(self) -> bool:
        """Whether there is a rate."""
        return self._rate.limit > 0

    def spend(self, count: int) -> bool:
        """Count bytes that have been received; False if the connection may not receive more before it is resumed."""
        delay = self._rate.spend(count, self._loop.time())
        if self._timer is not None:
            self.cancel()
        if delay:
            self._timer = self._loop.call_later(delay, self._open)
        return not delay

    def room(self, room: int) -> int:
        """How much of so much room the connection should fill at once."""
        return min(room, self._rate.quantum)

    def cancel(self) -> None:
        """Cancel a pending resumption."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _open(self) -> None:
        self._timer = None
        self._resume()
