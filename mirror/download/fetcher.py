"""Fetches the holes of one partial file: chooses the next hole, retries, and fetches ahead for readers."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable

import structlog

from mirror.aio import uninterrupted
from mirror.core.pieces import Lane
from mirror.core.retry import backoff
from mirror.download.lanes import Lanes
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

# An attempt that received so many bytes made progress: the count of failures starts again.
_PROGRESS_BYTES = 256 << 10
# How often to look at a hole that another writer fills.
_POLL_INTERVAL_S = 0.03
# How often a lazy driver reads what other processes have fetched.
_LAZY_POLL_INTERVAL_S = 0.25
# So many responses in a row have to agree on another size before what has arrived is discarded.
_AGREEING_SIZES = 2


class Fetcher:
    """Fetches what is missing of one partial file in this process.

    Attributes:
        write: writes bytes at an offset into the partial file; the driver's hashes them, too.
        is_lazy: fetch only what readers request.
        failure: the reason why that fails, or None.
    """

    def __init__(self, partial: Partial, source: Source, services: DownloadServices) -> None:
        self.write: Callable[[int, memoryview], None] = partial.write
        self.is_lazy = source.lazy_size is not None
        self.failure: MirrorError | None = None
        self._partial = partial
        self._source = source
        self._services = services
        # Stays set between two attempts: the next one serves the readers that wait there; they must not start another.
        self._main: RangeFetcher | None = None
        self._ahead: dict[RangeFetcher, asyncio.Task[None]] = {}
        self._ahead_failures = 0
        self._ahead_again = 0.0
        self._closed = False
        self._other_sizes: list[int | None] = []
        self._lanes = Lanes(partial, source, services, self._range_fetcher)
        # A reader starts further range fetchers, but they belong to the ingest, as this one does.
        self._context = contextvars.copy_context()

    @property
    def is_contradicted(self) -> bool:
        """Whether several responses in a row agreed on another size than the first one."""
        sizes = self._other_sizes[-_AGREEING_SIZES:]
        return len(sizes) == _AGREEING_SIZES and len(set(sizes)) == 1

    async def run(self) -> None:
        """Fetch hole after hole until there is none, a large blob over several connections. For the driver.

        Raises:
            UpstreamError, UpstreamRefusal: the attempts are used up.
            StorageError: the bytes cannot be written.
        """
        await self._run_lazily()
        self._lanes.start()
        try:
            await self._fetch_all()
        finally:
            await uninterrupted(self._lanes.close())

    async def _fetch_all(self) -> None:
        failures, loop = 0, asyncio.get_running_loop()
        progressed_at, seen = loop.time(), -1
        while not self._partial.map.is_complete():
            before = self._partial.map.received()
            try:
                fetched = await self._fetch_first_hole()
            except ConnectionWithdrawn:
                # No failure: the wait for another connection is bounded, and the hole begins where the bytes end.
                continue
            except (UpstreamError, UpstreamRefusal) as error:
                progress = self._partial.map.received() - before
                failures = 1 if progress >= _PROGRESS_BYTES else failures + 1
                if isinstance(error, UpstreamSizeChanged):
                    self._record_size(error.size)
                elif progress:
                    self._other_sizes.clear()
                await self._prepare_retry(error, failures, progressed=progress > 0)
                continue
            if not fetched:
                # Every hole has another writer, perhaps in another process.
                await self._partial.changed(_POLL_INTERVAL_S)
                self._partial.refresh()
                if self._partial.map.received() != seen:
                    progressed_at, seen = loop.time(), self._partial.map.received()
                    self._partial.announce()
                elif loop.time() - progressed_at > self._services.limits.stall_s:
                    raise StorageError(f"another worker holds a part of {self._partial.digest} and hangs", "busy")

    async def _run_lazily(self) -> None:
        """Leave the fetching to the readers of all processes until one of them requires the whole blob."""
        partial, size = self._partial, self._source.lazy_size
        if self.is_lazy and partial.map.size is None and size is not None:
            first = self._range_fetcher(Lane(0))
            try:
                await first.begin(size)
            finally:
                first.close()
        while self.is_lazy and not partial.map.is_complete():
            await partial.changed(_LAZY_POLL_INTERVAL_S)
            if self.failure is not None:
                raise self.failure
            before = partial.map.received()
            partial.refresh()
            if partial.map.received() != before:
                partial.announce()

    def fetch_ahead(self, position: int, until: int | None = None) -> None:
        """Make sure that a range fetcher is on its way to `position`, because a reader waits there.

        Args:
            until: how far that reader reads, for a lazy fetcher; None: everything that follows is needed.
        """
        if self._closed:
            # The reader has not seen yet that another partial file takes the place of this one.
            return
        loop = asyncio.get_running_loop()
        fetchers = [*self._ahead, *([self._main] if self._main else [])]
        # Before any search in the map, whose cost to every waiting reader grows with the blob.
        if len(fetchers) >= self._services.limits.fetchers or loop.time() < self._ahead_again:
            return
        fetchers += self._lanes.fetchers
        start = self._partial.map.available(position)
        if self._is_near(start, fetchers) or (until is not None and start >= until):
            return
        hole = self._partial.map.hole(max(start, position // CHUNK * CHUNK))
        if hole is None or self._is_near(hole[0], fetchers) or not self._start_ahead(_bounded(hole, until)):
            # Another writer fills it, perhaps in another process; a waiting reader asks again.
            self._ahead_again = loop.time() + _POLL_INTERVAL_S

    def fetch_beside(self) -> None:
        """Fetch what a lazy driver in another process does not, if this process requires the whole blob."""
        if self._source.lazy_size is None or self.is_lazy or self._partial.map.size is None:
            return
        hole = self._partial.map.hole(0)
        if hole is not None:
            self.fetch_ahead(hole[0])

    def _start_ahead(self, hole: tuple[int, int]) -> bool:
        """Begin to fetch a hole beside what is under way; False if another writer fills it."""
        fetcher = self._range_fetcher(Lane(*hole))
        if not fetcher.claim():
            fetcher.close()
            return False
        self._lanes.pieces.add(fetcher.lane)
        self._ahead[fetcher] = asyncio.get_running_loop().create_task(self._run_ahead(fetcher), context=self._context.copy())
        return True

    def _record_size(self, size: int | None) -> None:
        # Less than has arrived from its beginning is the size of some portal's page, not of the blob with these bytes.
        if size is None or size >= self._partial.map.available(0):
            self._other_sizes.append(size)

    def _is_near(self, position: int, fetchers: list[RangeFetcher]) -> bool:
        reach = self._services.limits.look_ahead_bytes
        return any(0 <= position - fetcher.lane.position < reach and self._reaches(fetcher, position) for fetcher in fetchers)

    def _reaches(self, fetcher: RangeFetcher, position: int) -> bool:
        """Whether a fetcher comes to a position; nothing follows one that is lazy."""
        return not self.is_lazy or position < fetcher.lane.stop

    async def close(self) -> None:
        """End what still runs, and begin nothing more; the partial file may be closed afterwards."""
        self._closed = True
        tasks = list(self._ahead.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A task that is cancelled before its first step does not close its range fetcher.
        for fetcher in list(self._ahead):
            self._end_ahead(fetcher)

    async def _fetch_first_hole(self) -> bool:
        """Fetch the first hole that has no other writer, or the next piece of it; False if there is none."""
        piece = self._lanes.take()
        if piece is not None and await self._fetch_main(piece):
            return True
        if self._partial.map.size is None:
            piece = self._lanes.first()
            self._lanes.pieces.add(piece)
            return await self._fetch_main(piece)
        hole = self._partial.map.hole(0)
        while hole is not None:
            piece = Lane(*hole)
            self._lanes.pieces.add(piece)
            if await self._fetch_main(piece):
                return True
            hole = self._partial.map.hole(hole[1])
        self._main = None
        return False

    async def _fetch_main(self, piece: Lane) -> bool:
        """Fetch a piece; False if it has another writer."""
        fetcher = self._range_fetcher(piece)
        try:
            if self._partial.map.size is not None and not fetcher.claim():
                return False
            self._main = fetcher
            await fetcher.fetch()
            return True
        finally:
            self._lanes.pieces.remove(piece)
            fetcher.close()

    async def _run_ahead(self, fetcher: RangeFetcher) -> None:
        try:
            await fetcher.fetch()
            self._ahead_failures = 0
        except (ConnectionWithdrawn, UpstreamError, UpstreamRefusal, StorageError) as error:
            # Not fatal unless lazy: the driver fetches this part later.
            log.info("fill_ahead_failed", digest=str(self._partial.digest), at=fetcher.lane.position, cause=str(error))
            self._ahead_failures += 1
            self._ahead_again = asyncio.get_running_loop().time() + _pause_s(self._ahead_failures)
            if self.is_lazy and self._is_final(error):
                self.failure = error
        finally:
            self._end_ahead(fetcher)
            # Another reader may have waited until fewer are under way.
            self._partial.announce()

    def _is_final(self, error: MirrorError) -> bool:
        """Whether readers wait in vain for what a range fetcher could not fetch."""
        if isinstance(error, UpstreamError | UpstreamRefusal):
            return self._is_hopeless(error, self._ahead_failures)
        return isinstance(error, StorageError)

    def _end_ahead(self, fetcher: RangeFetcher) -> None:
        if self._ahead.pop(fetcher, None) is not None:
            fetcher.close()
            self._lanes.pieces.remove(fetcher.lane)

    async def _prepare_retry(self, error: UpstreamError | UpstreamRefusal, failures: int, *, progressed: bool) -> None:
        """Wait as long as necessary before the next attempt, or raise the error if there should be none."""
        if self._is_hopeless(error, failures):
            raise error
        reason = error.reason if isinstance(error, UpstreamError) else "answer"
        log.info(
            "download_interrupted",
            digest=str(self._partial.digest),
            received=self._partial.map.received(),
            reason=reason,
            cause=str(error),
        )
        self._services.resumed(reason)
        if not progressed and not (isinstance(error, UpstreamError) and error.another):
            await asyncio.sleep(_pause_s(failures))

    def _is_hopeless(self, error: MirrorError, failures: int) -> bool:
        if self._partial.map.received() or (isinstance(error, UpstreamError) and error.another):
            return failures >= self._services.limits.attempts
        # Nothing has arrived yet: a client gains more from an early error, after which it turns to another host.
        no_answer = isinstance(error, UpstreamTimeout) and self._partial.map.size is None
        return failures > 1 or no_answer or isinstance(error, UpstreamRefusal | UpstreamRateLimited)

    def _range_fetcher(self, lane: Lane) -> RangeFetcher:
        return RangeFetcher(self._partial, self._source, self._services, lane, self._write)

    def _write(self, offset: int, data: memoryview) -> None:
        # Looked up now: a range fetcher may be older than the verifier.
        self.write(offset, data)


def _bounded(hole: tuple[int, int], until: int | None) -> tuple[int, int]:
    """The beginning of a hole, in whole chunks, that a reader up to `until` needs."""
    start, stop = hole
    return hole if until is None else (start, min(stop, -(-until // CHUNK) * CHUNK))


def _pause_s(failures: int) -> float:
    """How long to wait after so many failures in a row."""
    return backoff(failures, base=0.25, cap=4.0, jitter=0.5)
