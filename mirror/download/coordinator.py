"""How the holes of one blob get filled: by one filler after the other, and by further ones where readers wait far ahead."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

import structlog

from mirror.aio import Signal
from mirror.core.retry import backoff
from mirror.download.partial import CHUNK, Partial
from mirror.download.range_fetcher import RangeFetcher
from mirror.download.services import DownloadServices
from mirror.download.source import Source
from mirror.errors import (
    ConnectionWithdrawn,
    MirrorError,
    StorageError,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamRefusal,
    UpstreamSizeChanged,
    UpstreamTimeout,
)

log = structlog.get_logger(__name__)

# An attempt that brought this many bytes was worth it: the count of attempts starts anew.
_PROGRESS = 256 << 10
# How often to look whether a hole that somebody else fills has been filled or left, in seconds.
_LOOK_AGAIN = 0.03
# So many answers in a row have to agree on another size before what has arrived counts for nothing.
_AGREEING = 2


class FetchCoordinator:
    """The fillers of one partial blob in this process."""

    def __init__(
        self,
        partial: Partial,
        source: Source,
        services: DownloadServices,
        signal: Signal,
        progressed: Callable[[int | None], None],
    ) -> None:
        self._partial = partial
        self._source = source
        self._services = services
        self._signal = signal
        self._progressed = progressed
        # Stays set between two attempts: who waits there is served by the next one, and must not make one of their own.
        self._main: RangeFetcher | None = None
        self._ahead: dict[RangeFetcher, asyncio.Task[None]] = {}
        self._ahead_failures = 0
        self._ahead_again = 0.0
        self._closed = False
        self._other_sizes: list[int | None] = []
        # A reader makes further fillers, but they fetch for the download, as it does itself.
        self._context = contextvars.copy_context()

    @property
    def is_contradicted(self) -> bool:
        """Whether several answers in a row agreed on another size than the one that was told first."""
        told = self._other_sizes[-_AGREEING:]
        return len(told) == _AGREEING and len(set(told)) == 1

    async def fill(self) -> None:
        """Fill hole after hole until there is none. For the driver of the download.

        Raises:
            UpstreamError, UpstreamRefusal: the attempts are used up.
            StorageError: the bytes cannot be written.
        """
        failures, loop = 0, asyncio.get_running_loop()
        progressed_at, seen = loop.time(), -1
        while not self._partial.is_complete():
            before = self._partial.received()
            try:
                filled = await self._fill_first_hole()
            except ConnectionWithdrawn:
                # No failure: the wait for another connection is bounded, and the hole is where it was left.
                continue
            except (UpstreamError, UpstreamRefusal) as error:
                progressed = self._partial.received() - before
                failures = 1 if progressed >= _PROGRESS else failures + 1
                if isinstance(error, UpstreamSizeChanged):
                    self._note_size(error.size)
                elif progressed:
                    self._other_sizes.clear()
                await self._prepare_retry(error, failures, progressed > 0)
                continue
            if not filled:
                # Every hole has somebody else writing into it, perhaps in another process.
                await self._signal.wait(_LOOK_AGAIN)
                self._partial.refresh()
                if self._partial.received() != seen:
                    progressed_at, seen = loop.time(), self._partial.received()
                elif loop.time() - progressed_at > self._services.policy.stall:
                    raise StorageError(f"another worker holds a part of {self._partial.digest} and hangs", "busy")

    def want(self, position: int) -> None:
        """Make sure that somebody is heading for `position`, because a reader waits there."""
        if self._closed:
            # A reader does not know yet that another partial file takes the place of this one.
            return
        loop = asyncio.get_running_loop()
        fetchers = [*self._ahead, *([self._main] if self._main else [])]
        # Before any look through the map, which costs every waiting reader the more the larger the blob is.
        if len(fetchers) >= self._services.policy.fetchers or loop.time() < self._ahead_again:
            return
        start = self._partial.available(position)
        if self._is_near(start, fetchers):
            return
        hole = self._partial.hole(max(start, position // CHUNK * CHUNK))
        if hole is None or self._is_near(hole[0], fetchers) or not self._fill_from(hole):
            # Somebody else fills there, perhaps in another process; whoever waits comes again.
            self._ahead_again = loop.time() + _LOOK_AGAIN

    def _fill_from(self, hole: tuple[int, int]) -> bool:
        """Begin to fill a hole beside what is under way; False if somebody else is at it."""
        fetcher = self._fetcher(hole[0])
        if not fetcher.claim():
            fetcher.close()
            return False
        self._ahead[fetcher] = asyncio.get_running_loop().create_task(
            self._fill_ahead(fetcher, self._stop(hole)), context=self._context.copy()
        )
        return True

    def _note_size(self, size: int | None) -> None:
        # Less than has arrived from its beginning is no blob with these bytes, but a page of some portal.
        if size is None or size >= self._partial.available(0):
            self._other_sizes.append(size)

    def _is_near(self, position: int, fetchers: list[RangeFetcher]) -> bool:
        return any(0 <= position - fetcher.position < self._services.policy.look_ahead for fetcher in fetchers)

    async def close(self) -> None:
        """End what still runs, and begin nothing any more; the partial file may be closed afterwards."""
        self._closed = True
        tasks = list(self._ahead.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A task that is cancelled before its first step never comes to giving its filler back.
        for fetcher in self._ahead:
            fetcher.close()
        self._ahead.clear()

    async def _fill_first_hole(self) -> bool:
        """Fill the first hole that nobody else works on; False if there is none."""
        hole: tuple[int, int | None] | None = (0, None) if self._partial.size is None else self._partial.hole(0)
        while hole is not None:
            fetcher = self._fetcher(hole[0])
            try:
                if self._partial.size is None or fetcher.claim():
                    self._main = fetcher
                    await fetcher.fill(self._stop(hole))
                    return True
            finally:
                fetcher.close()
            hole = self._partial.hole(hole[1] or 0)
        self._main = None
        return False

    async def _fill_ahead(self, fetcher: RangeFetcher, stop: int | None) -> None:
        try:
            await fetcher.fill(stop)
            self._ahead_failures = 0
        except (ConnectionWithdrawn, UpstreamError, UpstreamRefusal, StorageError) as error:
            # Not fatal: the driver of the download comes to this place, too.
            log.info("fill_ahead_failed", digest=str(self._partial.digest), at=fetcher.position, cause=str(error))
            self._ahead_failures += 1
            self._ahead_again = asyncio.get_running_loop().time() + _pause(self._ahead_failures)
        finally:
            fetcher.close()
            self._ahead.pop(fetcher, None)
            # Another reader may have waited for one less to be under way.
            self._signal.pulse()

    async def _prepare_retry(self, error: UpstreamError | UpstreamRefusal, failures: int, progressed: bool) -> None:
        """Wait as long as is due before the next attempt, or raise the error if there should be none."""
        if self._hopeless(error, failures):
            raise error
        reason = error.reason if isinstance(error, UpstreamError) else "answer"
        log.info(
            "download_interrupted",
            digest=str(self._partial.digest),
            received=self._partial.received(),
            reason=reason,
            cause=str(error),
        )
        self._services.resumed(reason)
        if not progressed and not (isinstance(error, UpstreamError) and error.another):
            await asyncio.sleep(_pause(failures))

    def _hopeless(self, error: MirrorError, failures: int) -> bool:
        if self._partial.received() or (isinstance(error, UpstreamError) and error.another):
            return failures >= self._services.policy.attempts
        # Nothing has come yet: a client is better served by a quick answer, with which it turns to another host.
        no_answer = isinstance(error, UpstreamTimeout) and self._partial.size is None
        return failures > 1 or no_answer or isinstance(error, UpstreamRefusal | UpstreamRateLimited)

    def _stop(self, hole: tuple[int, int | None]) -> int | None:
        return None if hole[1] == self._partial.size else hole[1]

    def _fetcher(self, position: int) -> RangeFetcher:
        return RangeFetcher(self._partial, self._source, self._services, self._progressed, position)


def _pause(failures: int) -> float:
    """Seconds to wait after so many failures in a row."""
    return backoff(failures, base=0.25, cap=4.0, jitter=0.5)
