"""A value that takes time to make, shared by everyone who asks for it within some seconds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Generic, TypeVar

from mirror.aio import in_thread

T = TypeVar("T")

# A value that nobody has asked for is dropped: lists may be large.
_KEPT_S = 120.0
# A value is made so many times less often than it takes time.
_SHARE = 10


class SharedValue(Generic[T]):
    """Makes a value in a thread, at most one at a time. Use it from the event loop's thread only.

    Args:
        work: makes the value; blocks.
        max_age_s: an older value is made anew, but never more than a tenth of the time is spent on that.
    """

    def __init__(self, executor: Executor, work: Callable[[], T], max_age_s: float) -> None:
        self._executor = executor
        self._work = work
        self._max_age_s = max_age_s
        self._making: asyncio.Future[T] | None = None
        self._made: tuple[T, float] | None = None
        self._until = 0.0
        self._expiry: asyncio.TimerHandle | None = None

    async def get(self) -> T:
        """Return the value; who asks while it is being made for the first time waits. Raises what `work` raises."""
        loop = asyncio.get_running_loop()
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = loop.call_later(_KEPT_S, self.drop)
        if self._made is not None and time.monotonic() < self._until:
            return self._made[0]
        if self._making is None or self._making.done():
            self._making = asyncio.ensure_future(self._make())
            # Nobody may be left to be told.
            self._making.add_done_callback(lambda made: made.cancelled() or made.exception())
        return await asyncio.shield(self._making)

    @property
    def age_s(self) -> float:
        """Seconds since the value was made; 0 without one."""
        return 0.0 if self._made is None else max(0.0, time.monotonic() - self._made[1])

    def drop(self) -> None:
        """Have the value made anew for the next who asks."""
        self._made = None
        # What is being made may be from before the change.
        self._making = None

    async def _make(self) -> T:
        began = time.monotonic()
        value = await in_thread(self._executor, self._work)
        ended = time.monotonic()
        if self._making is asyncio.current_task():
            self._made = value, ended
            self._until = ended + max(self._max_age_s, (ended - began) * _SHARE)
        return value
