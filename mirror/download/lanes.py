"""Further connections for one large blob, beside the main one, as long as they are faster than one."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
from collections.abc import Callable

import structlog

from mirror import demand
from mirror.core.pieces import Lane, Pieces, Speed, Verdict, Width
from mirror.core.trailing import Ranges, is_behind, next_lane
from mirror.core.urgency import Urgency
from mirror.download.partial import Partial
from mirror.download.range_fetcher import RangeFetcher
from mirror.download.services import DownloadServices
from mirror.download.source import AskForRanges, Source
from mirror.errors import (
    ConnectionWithdrawn,
    RangeIgnored,
    StorageError,
    UpstreamBusy,
    UpstreamError,
    UpstreamRateLimited,
    UpstreamRefusal,
)

log = structlog.get_logger(__name__)

# How often the speed is measured.
_POLL_INTERVAL_S = 0.1
_SIZE_TIMEOUT_S = 1.0
# The pause before another connection, after a failure with another cause than parallel connections.
_PAUSE_S = 1.0
# After so many failures in a row one connection fetches the rest.
_MAX_FAILURES = 3
# The pauses before a node is asked again for what it has: after an answer, and if nobody has said it.
_RANGES_INTERVAL_S, _SILENT_INTERVAL_S = 0.05, 0.1
# How long the measured speed of an upstream is used.
_SPEED_TTL_S = 600.0


class Lanes:
    """Hands the missing bytes of a blob out to further connections, and opens these.

    Args:
        open_fetcher: returns a range fetcher for a piece.

    Attributes:
        pieces: those of all connections, the main one included.
        fetchers: the range fetchers of the further connections, and their tasks.
    """

    def __init__(
        self, partial: Partial, source: Source, services: DownloadServices, open_fetcher: Callable[[Lane], RangeFetcher]
    ) -> None:
        self.pieces = Pieces(partial.map.hole)
        self.fetchers: dict[RangeFetcher, asyncio.Task[None]] = {}
        self._partial = partial
        self._services = services
        self._open_fetcher = open_fetcher
        self._source = source
        self._first_tried = False
        self._origin = source.origin
        self._width = self._known_width()
        # What the node has that sends the blob; None if it comes from upstream.
        self._ranges: Ranges | None = None
        # Set once the node has answered for the first time, or if there is none.
        self._asked = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._failures = 0
        self._is_refused = False
        self._again = 0.0
        self._context = contextvars.copy_context()
        self._context.run(_be_less_urgent)

    def first(self) -> Lane:
        """The piece with which a blob begins whose size is not known yet.

        Where several connections are in use from the start, its end is requested, too: a connection that has to end in the middle
        of a response cannot be used again, and a new one from far away takes seconds to reach its speed. This is tried once.
        """
        named, is_tried, self._first_tried = self._source.named_size(), self._first_tried, True
        is_small = named is not None and named < self._services.limits.parallel_from_bytes
        return Lane(0) if is_tried or is_small or self._width.connections == 1 else Lane(0, self._width.speed.piece_length)

    def take(self) -> Lane | None:
        """The next piece for the main connection; None if it is the only connection, or if no piece is left."""
        return self._take()

    def start(self) -> None:
        """Begin to watch the speed, and to open connections until one is enough; `close` has to follow."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._run())]
        ask = self._source.ranges
        if ask is None or self._services.limits.fetchers == 1:
            self._asked.set()
        else:
            self._tasks.append(loop.create_task(self._trail(ask)))

    async def _run(self) -> None:
        size = await self._size()
        # Of a node only what it has is requested: it would fetch the rest beside its own pieces.
        await self._asked.wait()
        if self._source.origin != self._origin:
            # Another node sends it, as is known since its answer.
            self._origin = self._source.origin
            self._width = self._known_width()
        if size >= self._services.limits.parallel_from_bytes:
            while self._width.speed.verdict is not Verdict.SINGLE:
                self._look(size)
                await asyncio.sleep(_POLL_INTERVAL_S)

    async def _trail(self, ask: AskForRanges) -> None:
        """Have connections to a node wherever bytes arrive there, also if a single one would be as fast."""
        size, known = await self._size(), frozenset[int]()
        if size < self._services.limits.parallel_from_bytes:
            self._asked.set()
            return
        while True:
            self._ranges = await ask(known)
            self._asked.set()
            if self._ranges == [(0, size)]:
                # A node that has all of it has no ranges to choose from.
                self._ranges = None
                return
            self._open_more()
            known = frozenset(start for start, _ in self._ranges or ())
            await asyncio.sleep(_SILENT_INTERVAL_S if self._ranges is None else _RANGES_INTERVAL_S)

    def _known_width(self) -> Width:
        known = self._services.speeds.get(self._origin, asyncio.get_running_loop().time())
        return Width(self._services.limits.fetchers, known or Speed())

    async def _size(self) -> int:
        while (size := self._partial.map.size) is None:
            await self._partial.changed(_SIZE_TIMEOUT_S)
        return size

    async def close(self) -> None:
        """Cancel the further connections, and open no more."""
        self._again = math.inf
        tasks = [*self.fetchers.values(), *self._tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # A task that is cancelled before its first step does not close its range fetcher.
        for fetcher in list(self.fetchers):
            self._end(fetcher)

    def _look(self, size: int) -> None:
        received, before = self._partial.map.received(), self._width.speed.verdict
        self._width.note(asyncio.get_running_loop().time(), received, size - received, self.pieces.lanes)
        self._record(before)
        self._open_more()

    def _record(self, before: Verdict) -> None:
        """Keep the measured speed for the next blob from the same origin."""
        speed = self._width.speed
        if speed.verdict is Verdict.UNKNOWN or self._source.origin != self._origin:
            return
        self._services.speeds.put(self._origin, speed, expires=asyncio.get_running_loop().time() + _SPEED_TTL_S)
        if before is not speed.verdict:
            log.info(
                "parallel_fetch", digest=str(self._partial.digest), origin=str(self._origin), verdict=speed.verdict.name.lower()
            )

    def _take(self) -> Lane | None:
        if asyncio.get_running_loop().time() < self._again:
            return None
        connections, speed = self._width.connections, self._width.speed
        if self._ranges:
            lane = self._take_trailing(self._ranges)
            # What the node does not have yet is no piece for another connection to it.
            if lane is not None or not is_behind(self._ranges, self._partial.map.hole, (connections + 1) * speed.piece_length):
                return lane
        return self.pieces.take(connections, speed) if connections > 1 else None

    def _take_trailing(self, theirs: Ranges) -> Lane | None:
        if self._is_refused or len(self.pieces.lanes) >= self._services.limits.fetchers:
            return None
        lane = next_lane(theirs, self._partial.map.hole, self.pieces.lanes)
        if lane is not None:
            self.pieces.add(lane)
        return lane

    def _open_more(self) -> None:
        while (lane := self._take()) is not None:
            fetcher = self._claimed(lane)
            if fetcher is not None:
                task = self._context.copy().run(asyncio.get_running_loop().create_task, self._fetch(fetcher))
                self.fetchers[fetcher] = task
            else:
                self.pieces.remove(lane)
                self._pause()

    def _claimed(self, lane: Lane) -> RangeFetcher | None:
        """Open a range fetcher for a piece that it has claimed.

        None if another process fills the piece, whose end is unknown, or if the kernel has no descriptor or lock left.
        """
        with contextlib.suppress(StorageError):
            fetcher = self._open_fetcher(lane)
            with contextlib.ExitStack() as stack:
                stack.callback(fetcher.close)
                if fetcher.claim():
                    stack.pop_all()
                    return fetcher
        return None

    async def _fetch(self, fetcher: RangeFetcher) -> None:
        try:
            await fetcher.fetch(partially=True)
            self._failures = 0
        except (ConnectionWithdrawn, UpstreamBusy, StorageError):
            # The main connection continues, and meets the same failure if it lasts.
            self._pause()
        except (UpstreamError, UpstreamRefusal) as error:
            self._fail(error)
        finally:
            self._end(fetcher)
        self._open_more()

    def _fail(self, error: UpstreamError | UpstreamRefusal) -> None:
        log.info("parallel_fetch_failed", digest=str(self._partial.digest), cause=str(error))
        if isinstance(error, UpstreamError) and error.another:
            # It says nothing about the next source.
            self._pause()
            return
        self._failures += 1
        if self._failures >= _MAX_FAILURES or isinstance(error, RangeIgnored | UpstreamRateLimited | UpstreamRefusal):
            before = self._width.speed.verdict
            self._width.refuse()
            self._is_refused = True
            self.pieces.rejoin()
            self._record(before)
        else:
            self._pause()

    def _pause(self) -> None:
        self._again = asyncio.get_running_loop().time() + _PAUSE_S

    def _end(self, fetcher: RangeFetcher) -> None:
        if self.fetchers.pop(fetcher, None) is not None:
            fetcher.close()
            self.pieces.remove(fetcher.lane)


def _be_less_urgent() -> None:
    """Let the first connection of another blob come first, and give a connection back to it."""
    urgency = demand.urgency.get()
    demand.urgency.set(lambda: max(urgency(), Urgency.PREFETCH))
