"""What the connections for blobs of one process share to receive: the buffers, and how fast bytes may arrive."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from mirror.core.byte_rate import ByteRate
from mirror.upstream.buffers import BufferPool


@dataclass(frozen=True)
class Intake:
    """See the module."""

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

    def spend(self, count: int) -> bool:
        """Count bytes that have been received; False if the connection may not receive more before it is resumed."""
        delay = self._rate.spend(count, self._loop.time()) if self._rate.limit else 0.0
        if self._timer is not None:
            self.cancel()
        if delay:
            self._timer = self._loop.call_later(delay, self._open)
        return not delay

    def room(self, room: int) -> int:
        """How much of so much room the connection should fill at once."""
        return min(room, self._rate.quantum) if self._rate.limit else room

    def cancel(self) -> None:
        """Resume nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None

    def _open(self) -> None:
        self._timer = None
        self._resume()
