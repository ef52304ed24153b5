"""A reader's own stream from upstream, for when the store cannot take or vouch for the bytes of a blob."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from io import FileIO

from mirror.aio import on_descriptor
from mirror.core.digest import Digest
from mirror.download.source import BlobStream, Source
from mirror.download.states import HELD_BACK_BYTES
from mirror.download.verifier import Hasher, hash_piece
from mirror.errors import (
    ConnectionWithdrawn,
    DigestMismatch,
    StorageError,
    UpstreamDisconnected,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamTimeout,
)


class StreamTask:
    """One stream from upstream, read one piece ahead of the reader by a task of its own.

    Withdrawing a connection cancels the task that uses it (`ConnectionWithdrawn`). The reader's own task may be waiting for its
    client at that moment, and could not distinguish that cancellation from the end of the request.
    """

    def __init__(self, source: Source, position: int) -> None:
        self._source = source
        self._position = position
        self._stream: BlobStream | None = None
        self._piece: bytes | None = None
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._read())
        self._task.add_done_callback(self._on_end)

    async def opened(self) -> BlobStream:
        """Wait for the head of the response. Raises like `Source.open`."""
        while self._stream is None and not self._task.done():
            await self._change()
        if self._stream is None:
            self._task.result()
        assert self._stream is not None
        return self._stream

    async def piece(self) -> bytes:
        """The next bytes, empty at the end of the stream. Raises what ended it early."""
        while self._piece is None and not self._task.done():
            await self._change()
        piece, self._piece = self._piece, None
        self._taken.set()
        if piece is None:
            self._task.result()
        return piece or b""

    async def close(self) -> None:
        """End the stream and its connection."""
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _read(self) -> None:
        async with self._source.open(self._position, None) as stream:
            self._stream = stream
            self._changed.set()
            async for block in stream.blocks():
                # A copy: the reader keeps it beyond the next block, for a slow client or until the digest is known.
                self._piece = bytes(block)
                self._changed.set()
                self._taken.clear()
                await self._taken.wait()

    async def _change(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._changed.set()
        if not task.cancelled():
            # Retrieved: asyncio would log the error if the reader has left.
            task.exception()


class PassthroughStream:
    """Streams one blob past the store, and continues from the broken byte if upstream breaks.

    A body from the blob's beginning to its end is verified before its last bytes are handed out.

    Args:
        size: bytes of the whole blob, if they have been sent to the client.
    """

    def __init__(self, digest: Digest, source: Source, executor: Executor, attempts: int, size: int | None) -> None:
        self._digest = digest
        self._source = source
        self._executor = executor
        self._attempts = attempts
        self._size = size
        self._task: StreamTask | None = None
        # Where the stream begins, until something is read from it.
        self._unread: int | None = None

    async def open(self, position: int) -> int:
        """Connect at `position`, once more after a failure that may pass; returns the bytes of the whole blob.

        Raises like `Source.open`.
        """
        try:
            return await self._connect(position)
        except (UpstreamRateLimited, UpstreamTimeout):
            raise
        except (ConnectionWithdrawn, UpstreamError):
            return await self._connect(position)

    async def _connect(self, position: int) -> int:
        await self.close()
        self._task = StreamTask(self._source, position)
        stream = await self._task.opened()
        if self._size not in (None, stream.size):
            raise UpstreamProtocolError(f"upstream now says that {self._digest} has {stream.size} bytes, not {self._size}")
        if not stream.size and Digest.of(b"", self._digest.algorithm) != self._digest:
            # There is no last byte to hold back.
            raise DigestMismatch(f"upstream says that {self._digest} is empty, which has another digest")
        self._size, self._unread = stream.size, stream.start
        return stream.size

    async def close(self) -> None:
        """End the connection."""
        self._unread = None
        task, self._task = self._task, None
        if task is not None:
            await task.close()

    async def blocks(self, start: int, stop: int, before: FileIO | None) -> AsyncIterator[bytes]:
        """The bytes from `start` up to `stop`.

        Args:
            before: a file with the bytes in front of `start`, if they have been delivered from there.

        Raises:
            UpstreamError, ConnectionWithdrawn: upstream broke, or its connection was withdrawn, too often.
            DigestMismatch: the bytes have another digest; the last ones have been held back.
        """
        size = self._size if self._size is not None else await self.open(start)
        hasher = await self._hash_before(start, before) if stop == size else None
        limit = size - HELD_BACK_BYTES if hasher is not None else stop
        held_back = bytearray()
        position = start
        async for block in self._continued(start, stop):
            if hasher is not None:
                hasher.update(block)
            free = max(0, min(len(block), limit - position))
            position += len(block)
            if free:
                yield block[:free]
            held_back += block[free:]
        if hasher is not None and hasher.hexdigest() != self._digest.encoded:
            self._source.penalize()
            raise DigestMismatch(f"upstream's bytes of {self._digest} have another digest")
        if held_back:
            yield bytes(held_back)

    async def _continued(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """The bytes of the stream, reopened where it broke."""
        position, failures = start, 0
        # A stream is read once: another part requires another one, even from the same position.
        task = self._task if self._unread == start else None
        self._unread = None
        while position < stop:
            try:
                if task is None:
                    await self._connect(position)
                    task, self._unread = self._task, None
                assert task is not None
                while piece := (await task.piece())[: stop - position]:
                    position += len(piece)
                    failures = 0
                    yield piece
                    if position >= stop:
                        return
                raise UpstreamDisconnected(f"upstream ended {self._digest} at byte {position}")
            except (ConnectionWithdrawn, UpstreamError):
                failures += 1
                task = None
                if failures >= self._attempts:
                    raise

    async def _hash_before(self, start: int, before: FileIO | None) -> Hasher | None:
        hasher: Hasher = self._digest.hasher()
        if start and before is None:
            return None
        position = 0
        while before is not None and position < start:
            position = await on_descriptor(self._executor, before.fileno(), _hash, hasher, position, start)
        return hasher


def _hash(descriptor: int, hasher: Hasher, position: int, end: int) -> int:
    return hash_piece(hasher, descriptor, position, end)


class PassthroughBody:
    """The body of a blob that the store holds but cannot vouch for in time.

    Args:
        threads: part of the interface of a body; there is no file to read.
        first_byte_s: bound of the wait for the first byte.
    """

    bypassed = True

    def __init__(self, stream: PassthroughStream, threads: Executor, first_byte_s: float) -> None:
        self.threads = threads
        self._stream = stream
        self._position = -1
        self._deadline = asyncio.get_running_loop().time() + first_byte_s
        self._first_byte_s = first_byte_s

    async def sized(self) -> int:
        """Open the stream, and return the size that upstream announces."""
        return await self._open(0)

    async def ready(self, start: int, stop: int) -> None:
        """Open the stream at `start`."""
        if start != self._position:
            await self._open(start)

    async def spans(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """The bytes as they arrive."""
        async for block in self._stream.blocks(start, stop, None):
            yield block

    async def stored(self) -> bool:
        """Raise StorageError: nothing is stored."""
        raise StorageError("this stream goes past the store", "io")

    async def close(self) -> None:
        """Close the stream."""
        await self._stream.close()

    async def _open(self, position: int) -> int:
        try:
            async with asyncio.timeout_at(self._deadline):
                size = await self._stream.open(position)
        except TimeoutError as error:
            raise UpstreamTimeout(f"no byte of a blob past the store within {self._first_byte_s:g} s") from error
        self._position = position
        return size
