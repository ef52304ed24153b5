"""Shared requests to upstream: one per key at a time, and a pause after two failures in a row."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from mirror.aio import SingleFlight, UseCount
from mirror.core.failures import Failures
from mirror.errors import UpstreamError

T = TypeVar("T")

# Failures of one request. Those of an upstream as a whole are for its health and its pull limit.
_REMEMBERED = frozenset({"server_error", "cut", "protocol", "digest_mismatch", "redirect", "credentials"})


class FailureMemory:
    """Recent failures by key. Times are seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._failures: Failures[UpstreamError] = Failures()

    def refuse(self, key: Hashable) -> None:
        """Raise the last failure of a key while its pause lasts."""
        lately = self._failures.lately(key, self.clock())
        if lately is not None:
            cause, left = lately
            raise cause.again("this has failed again and again, and is not tried for now", max(1.0, left))

    def note(self, key: Hashable, error: BaseException | None) -> None:
        """Note the outcome of a request. Only failures of a request that was sent are kept."""
        if error is None:
            self._failures.forget(key)
        elif isinstance(error, UpstreamError) and error.sent and error.reason in _REMEMBERED:
            # Not the error itself: its traceback would keep alive what the request had read.
            self._failures.note(key, error.bare(), self.clock())


class GuardedSingleFlight(Generic[T]):
    """A `SingleFlight` that raises recent failures instead of sending the request again."""

    def __init__(self, in_use: UseCount | None = None) -> None:
        self.memory = FailureMemory()
        self._flights: SingleFlight[T] = SingleFlight(in_use)

    async def run(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> tuple[T, bool]:
        """The result, and whether a flight was joined rather than started.

        Raises:
            UpstreamError: the request has failed, now or a moment ago.
        """
        self.memory.refuse(key)
        return await self._flights.run(key, lambda: self._noted(key, work))

    async def close(self) -> None:
        """Cancel the requests."""
        await self._flights.close()

    async def _noted(self, key: Hashable, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        try:
            answer = await work()
        except UpstreamError as error:
            self.memory.note(key, error)
            raise
        self.memory.note(key, None)
        return answer
