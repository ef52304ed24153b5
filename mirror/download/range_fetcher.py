"""Fetches one hole of a blob from upstream and writes it to its place."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import ParamSpec

from mirror.aio import Shared
from mirror.core.pieces import END, Lane
from mirror.download.partial import CHUNK, Partial
from mirror.download.services import DownloadServices
from mirror.download.source import BlobStream, Source
from mirror.errors import RangeIgnored, StorageError, UpstreamDisconnected, UpstreamSizeChanged
from mirror.storage.page_cache import start_write_back
from mirror.storage.space_quota import make_room_after

P = ParamSpec("P")

# Writing back begins whenever so much more has been written.
_WRITE_BACK_BYTES = 8 << 20
# So long the start of a new file waits for the first block: one turn of a thread does both, and a client waits for them.
_FIRST_BLOCK_TIMEOUT_S = 0.01

Block = bytes | memoryview


class RangeFetcher:
    """Writes from the position of a lane on until the hole is filled or a chunk of another writer begins.

    Args:
        write: writes bytes at an offset into the partial file; called in a thread.

    Attributes:
        lane: where the next byte will be written, before which all has arrived, and where to stop.
    """

    def __init__(
        self,
        partial: Partial,
        source: Source,
        services: DownloadServices,
        lane: Lane,
        write: Callable[[int, memoryview], None],
    ) -> None:
        self._partial = partial
        self._source = source
        self._services = services
        self._write = write
        self._lock = partial.locks()
        self.lane = lane
        position = lane.position
        self._first, self._next = position // CHUNK, position // CHUNK
        self._written_back = position - position % _WRITE_BACK_BYTES
        self._writing_back: Future[None] | None = None
        partial.shared.keep()
        self._shared = Shared(self._release)

    def claim(self) -> bool:
        """Claim the chunk at the lane's position; False if another writer has it, or has already gone further in it."""
        return self._claim_next(self.lane.position % CHUNK)

    async def begin(self, size: int) -> None:
        """Start the partial file of a blob of `size` bytes.

        Raises:
            StorageError: there is no space.
        """
        await self._stored(size, self._partial.begin, size, self._source.owner)
        self._partial.announce()

    async def fetch(self, *, partially: bool = False) -> None:
        """Fetch the lane; return at its end, or where another writer's chunk begins.

        The first chunk has to be claimed, unless the size of the blob is unknown; then it is learned here.

        Args:
            partially: do not read what upstream sends in front of the lane.

        Raises:
            RangeIgnored: it sends that.
            UpstreamError, UpstreamRefusal: the stream ended before the lane did; what has arrived is kept.
            StorageError: the bytes could not be written.
        """
        lane, size, began = self.lane, self._partial.map.size, time.monotonic()
        stop = None if lane.stop >= (END if size is None else size) else lane.stop
        async with self._source.open(lane.position, stop) as stream:
            lane.round_trip = time.monotonic() - began
            lane.end = stop if stop is not None and stream.is_partial else END
            lane.stop = min(lane.stop, lane.end)
            if partially and not stream.is_partial:
                raise RangeIgnored(f"upstream ignores the request for a range of {self._partial.digest}")
            if self._partial.map.size is None:
                # Upstream may ignore the end of the first piece.
                lane.stop = lane.end
                # Claimed before another process can see that there is a chunk: its reader would have it fetched as well.
                if not self._lock.try_acquire(0, CHUNK):
                    await self.begin(stream.size)
                    return
                self._next = 1
            elif stream.size != self._partial.map.size:
                message = f"upstream now says that {self._partial.digest} has {stream.size} bytes, not {self._partial.map.size}"
                raise UpstreamSizeChanged(message, size=stream.size)
            await self._copy(stream)

    async def _copy(self, stream: BlobStream) -> None:
        size, blocks = stream.size, stream.blocks()
        if self._partial.map.size is None:
            is_done = await self._store(await self._first_block(blocks, size), size)
        else:
            is_done = self.lane.position >= size
        while not is_done:
            block = await anext(blocks, None)
            if block is None:
                # Even if the response has announced no more: counted as done, the rest would be requested without end.
                what = f"{self._partial.digest} at byte {self.lane.position}"
                raise UpstreamDisconnected(f"upstream ended {what}, where more was asked for")
            is_done = await self._store(block, size)
            # Not kept until the next one comes, which may take long.
            del block

    async def _first_block(self, blocks: AsyncIterator[Block], size: int) -> Block:
        """The first block, empty if there is none; the file is started before if that takes its time."""
        loop, begun = asyncio.get_running_loop(), list[asyncio.Task[None]]()
        timer = loop.call_later(_FIRST_BLOCK_TIMEOUT_S, lambda: begun.append(loop.create_task(self.begin(size))))
        try:
            return await anext(blocks, b"")
        except asyncio.CancelledError:
            for task in begun:
                task.cancel()
            raise
        finally:
            timer.cancel()
            # Also after an error of upstream: another attempt must not start the file at the same time.
            for task in begun:
                await task

    async def _store(self, block: Block, size: int) -> bool:
        """Write a block behind what the lane has, and start the file if there is none; whether nothing more is to be written."""
        is_new = self._partial.map.size is None
        # One turn does both for a part of the first chunk. After a full one the next is claimed, which takes a map.
        if is_new and not 0 < len(block) < CHUNK:
            is_new = False
            await self.begin(size)
        # Other connections may have been given the end of the piece meanwhile.
        lane, stop = self.lane, min(self.lane.stop, size)
        start, end = lane.position, min(lane.position + len(block), stop)
        if start >= stop:
            return True
        # Before other processes can see that a chunk is full: a follower would claim the next one otherwise.
        claimed = self._claim_up_to(end, stop)
        write = functools.partial(self._write_first, size) if is_new else self._write
        await self._stored(stop - start, write, start, memoryview(block)[: claimed - start])
        lane.position = claimed
        self._release_full(stop)
        self._write_back()
        if is_new:
            self._partial.announce()
        else:
            self._partial.announce_bytes(start, claimed)
        return claimed >= stop or claimed < end or self._next * CHUNK <= claimed

    def _write_first(self, size: int, start: int, block: memoryview) -> None:
        # It is there if this is the second attempt, after room was made.
        if self._partial.map.size is None:
            self._partial.begin(size, self._source.owner)
        self._write(start, block)

    def _claim_up_to(self, end: int, stop: int) -> int:
        """Claim the chunks that a step up to `end` reaches, and the next one if it fills its last; returns how far it may go."""
        while (boundary := self._next * CHUNK) <= end and boundary < stop:
            if not self._claim_next(0):
                return boundary
        return end

    def _claim_next(self, arrived: int) -> bool:
        """Claim the chunk behind those that are claimed; False if another writer has it or has written into it."""
        index = self._next
        if not self._partial.claim(self._lock, index) or self._partial.map.arrived[index] != arrived:
            return False
        self._next += 1
        return True

    def _release_full(self, stop: int) -> None:
        """Release the chunks that have been filled, but for the one that ends the hole."""
        full = min(self.lane.position, stop - 1) // CHUNK
        if full > self._first:
            self._lock.release(self._first * CHUNK, (full - self._first) * CHUNK)
            self._first = full

    async def _stored(self, needed: int, work: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Work on the partial file in a thread; if the disk is full, once more after an attempt to make room."""
        threads = self._services.threads.write
        try:
            await self._shared.in_thread(threads, work, *args, **kwargs)
        except StorageError as error:
            await make_room_after(error, needed, self._source.owner, self._services.make_room)
            await self._shared.in_thread(threads, work, *args, **kwargs)

    def _write_back(self) -> None:
        """Have the kernel begin to write to the disk meanwhile, so that the flush finds little to do; one part at a time."""
        ready = self.lane.position - self.lane.position % _WRITE_BACK_BYTES
        if ready <= self._written_back or (self._writing_back is not None and not self._writing_back.done()):
            return
        self._shared.keep()
        self._writing_back = self._services.threads.write_back.submit(
            start_write_back, self._partial.descriptor, self._written_back, ready - self._written_back
        )
        self._writing_back.add_done_callback(lambda _: self._shared.drop())
        self._written_back = ready

    def close(self) -> None:
        """Release the claimed chunks, as soon as no thread writes into them."""
        self._shared.close()

    def _release(self) -> None:
        self._lock.close()
        self._partial.shared.drop()
