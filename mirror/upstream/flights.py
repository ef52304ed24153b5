"""Questions to upstream: asked once for all who want to know, and not again at once when asking has failed twice."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from mirror.aio import SingleFlight, UseCount
from mirror.core.failures import Failures
from mirror.errors import UpstreamError

T = TypeVar("T")

# Failures of one question; of an upstream as a whole, its health and its pull limit take care.
_REMEMBERED = frozenset({"server_error", "cut", "protocol", "digest_mismatch", "redirect", "credentials"})


class FailureMemory:
    """What has failed lately. Times are seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._failures: Failures[UpstreamError] = Failures()

    def refuse(self, key: Hashable) -> None:
        """Raise what went wrong lately, if it should not be tried again yet."""
        lately = self._failures.lately(key, self.clock())
        if lately is not None:
            cause, left = lately
            raise cause.again("this has failed again and again, and is not tried for now", max(1.0, left))

    def note(self, key: Hashable, error: BaseException | None) -> None:
        """Note how it ended; only what upstream was asked for, and failed at, is remembered."""
        if error is None:
            self._failures.forget(key)
        elif isinstance(error, UpstreamError) and error.asked and error.reason in _REMEMBERED:
            # Not the error itself: its traceback holds all that the work had at hand, for as long as it is remembered.
            self._failures.note(key, error.bare(), self.clock())


class GuardedSingleFlight(Generic[T]):
    """One question per key at a time; see `SingleFlight`."""

    def __init__(self, in_use: UseCount | None = None) -> None:
        self.memory = FailureMemory()
        self._flights: SingleFlight[T] = SingleFlight(in_use)

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> tuple[T, bool]:
        """The answer, and whether somebody else had already asked.

        Raises:
            UpstreamError: asking has failed, now or a moment ago.
        """
        self.memory.refuse(key)
        return await self._flights.run(key, lambda: self._noted(key, work))

    async def close(self) -> None:
        """Stop asking."""
        await self._flights.close()

    async def _noted(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            answer = await work()
        except UpstreamError as error:
            self.memory.note(key, error)
            raise
        self.memory.note(key, None)
        return answer
