"""A filler: fetches one hole of a blob from upstream and writes it where it belongs."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future
from typing import ParamSpec

from mirror.aio import Shared
from mirror.download.partial import CHUNK, Partial
from mirror.download.services import DownloadServices
from mirror.download.source import BlobStream, Source
from mirror.errors import UpstreamDisconnected, UpstreamSizeChanged
from mirror.storage.page_cache import start_write_back
from mirror.storage.space_quota import retry_with_room

P = ParamSpec("P")

# Writing back begins whenever so much more has been written.
_WRITE_BACK = 8 << 20


class RangeFetcher:
    """Writes from `position` on until the hole is filled or another filler's ground begins.

    Args:
        progress: told which chunk has got more bytes; None: the size is known now.

    Attributes:
        position: where the next byte will be written; what is behind it has arrived.
    """

    def __init__(
        self,
        partial: Partial,
        source: Source,
        services: DownloadServices,
        progress: Callable[[int | None], None],
        position: int,
    ) -> None:
        self._partial = partial
        self._source = source
        self._services = services
        self._progress = progress
        self._lock = partial.locks()
        self._chunk: int | None = None
        self.position = position
        self._written_back = position - position % _WRITE_BACK
        self._writing_back: Future[None] | None = None
        partial.shared.keep()
        self._shared = Shared(self._release)

    def claim(self) -> bool:
        """Claim the chunk at `position`; False if somebody else writes there, or has already gone further in it."""
        index, within = divmod(self.position, CHUNK)
        return self._take(index) and self._partial.arrived_in_chunk(index) == within

    async def fill(self, stop: int | None) -> None:
        """Fetch up to `stop` (None: to the end) and return when there, or when somebody else fills what comes next.

        The first chunk has to be claimed, unless nobody knows the size of the blob yet; then it is learned here.

        Raises:
            UpstreamError, UpstreamRefusal: the stream ended before the hole did; what has come is kept.
            StorageError: the bytes could not be written.
        """
        async with self._source.open(self.position, stop) as stream:
            if self._partial.size is None:
                # Claimed before anybody can see that there is a chunk: another process's reader would fill it as well.
                if self._lock.try_acquire(0, CHUNK):
                    self._chunk = 0
                await self._stored(stream.size, self._partial.begin, stream.size)
                self._progress(None)
                if self._chunk is None:
                    return
            if stream.size != self._partial.size:
                message = f"upstream now says that {self._partial.digest} has {stream.size} bytes, not {self._partial.size}"
                raise UpstreamSizeChanged(message, size=stream.size)
            await self._copy(stream, stream.size if stop is None else stop)

    async def _copy(self, stream: BlobStream, stop: int) -> None:
        if self.position >= stop:
            return
        async for block in stream.blocks():
            rest = memoryview(block)[: stop - self.position]
            while rest:
                piece = rest[: CHUNK - self.position % CHUNK]
                end = self.position + len(piece)
                finished = self._chunk if end % CHUNK == 0 and end < stop else None
                # Before anybody can see that this chunk is full: who follows would take the next one from under this stream.
                goes_on = finished is None or (self._take(end // CHUNK) and self._partial.arrived_in_chunk(end // CHUNK) == 0)
                await self._stored(stop - self.position, self._partial.write, self.position, piece)
                filled, self.position = self.position // CHUNK, end
                rest = rest[len(piece) :]
                if finished is not None:
                    self._lock.release(finished * CHUNK, CHUNK)
                self._write_back()
                self._progress(filled)
                if end >= stop or not goes_on:
                    return
        # By what it announced that may be all; if it counted as done, upstream would be asked for the rest without an end.
        raise UpstreamDisconnected(f"upstream ended {self._partial.digest} at byte {self.position}, where more was asked for")

    async def _stored(self, needed: int, work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Work on the partial file in a thread; if the disk is full, once more after an attempt to make room."""
        store = functools.partial(self._shared.in_thread, self._services.threads.write, work, *args, **kwargs)
        await retry_with_room(store, needed, self._services.make_room)

    def _take(self, index: int) -> bool:
        """Claim a chunk, keeping the one before it."""
        if not self._partial.claim(self._lock, index):
            return False
        self._chunk = index
        return True

    def _write_back(self) -> None:
        """Have what has been written get to the disk meanwhile, so that flushing finds little to do; one step at a time."""
        ready = self.position - self.position % _WRITE_BACK
        if ready <= self._written_back or (self._writing_back is not None and not self._writing_back.done()):
            return
        self._shared.keep()
        self._writing_back = self._services.threads.write_back.submit(
            start_write_back, self._partial.descriptor, self._written_back, ready - self._written_back
        )
        self._writing_back.add_done_callback(lambda _: self._shared.drop())
        self._written_back = ready

    def close(self) -> None:
        """Give the claimed chunk back, as soon as no thread writes into it."""
        self._shared.close()

    def _release(self) -> None:
        self._lock.close()
        self._partial.shared.drop()
