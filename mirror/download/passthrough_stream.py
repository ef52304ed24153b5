"""A reader's own stream from upstream, for when the store cannot take the bytes of a blob."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import Executor
from io import FileIO

from mirror.aio import on_descriptor
from mirror.core.digest import Digest
from mirror.download.source import Source
from mirror.download.stream_task import StreamTask
from mirror.download.verifier import Hasher, hash_piece
from mirror.errors import (
    ConnectionWithdrawn,
    DigestMismatch,
    UpstreamDisconnected,
    UpstreamError,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamTimeout,
)

# Not delivered before the digest has matched.
_HELD_BACK = 64 << 10


class PassthroughStream:
    """Streams one blob past the store, going on from the broken byte if upstream breaks.

    A body that reaches the blob's end from its beginning is verified before its last bytes are handed out.

    Args:
        size: bytes of the whole blob, if the client has been told.
    """

    def __init__(self, digest: Digest, source: Source, executor: Executor, attempts: int, size: int | None) -> None:
        self._digest = digest
        self._source = source
        self._executor = executor
        self._attempts = attempts
        self._size = size
        self._task: StreamTask | None = None
        # Where the stream begins, as long as nothing has been read from it.
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
            # There will be no last byte to keep back.
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
            before: a file that holds the bytes in front of `start`, if they have been delivered from there.

        Raises:
            UpstreamError, ConnectionWithdrawn: upstream broke, or its connection was withdrawn, too often.
            DigestMismatch: the blob is not what it should be; its end has been kept back.
        """
        size = self._size if self._size is not None else await self.open(start)
        hasher = await self._hash_before(start, before) if stop == size else None
        limit = size - _HELD_BACK if hasher is not None else stop
        kept = bytearray()
        position = start
        async for block in self._continued(start, stop):
            if hasher is not None:
                hasher.update(block)
            free = max(0, min(len(block), limit - position))
            position += len(block)
            if free:
                yield block[:free]
            kept += block[free:]
        if hasher is not None and hasher.hexdigest() != self._digest.encoded:
            raise DigestMismatch(f"upstream's bytes of {self._digest} have another digest")
        if kept:
            yield bytes(kept)

    async def _continued(self, start: int, stop: int) -> AsyncIterator[bytes]:
        """The bytes of the stream, reopened where it broke."""
        position, failures = start, 0
        # A stream is read once: another part needs another one, even if it begins at the same place.
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
