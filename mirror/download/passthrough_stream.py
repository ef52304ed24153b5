"""A reader's own stream from upstream, for when the store cannot take the bytes of a blob."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from io import FileIO

from mirror.aio import on_descriptor
from mirror.core.digest import Digest
from mirror.download.source import BlobStream, Source
from mirror.download.verifier import Hasher, hash_piece
from mirror.errors import (
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
        self._stack = AsyncExitStack()
        self._stream: BlobStream | None = None

    async def open(self, position: int) -> int:
        """Connect at `position`, once more after a failure that may pass; returns the bytes of the whole blob.

        Raises like `Source.open`.
        """
        try:
            self._stream = await self._connect(position)
        except (UpstreamRateLimited, UpstreamTimeout):
            raise
        except UpstreamError:
            self._stream = await self._connect(position)
        return self._stream.size

    async def _connect(self, position: int) -> BlobStream:
        await self._stack.aclose()
        stream = await self._stack.enter_async_context(self._source.open(position, None))
        if self._size not in (None, stream.size):
            raise UpstreamProtocolError(f"upstream now says that {self._digest} has {stream.size} bytes, not {self._size}")
        if not stream.size and Digest.of(b"", self._digest.algorithm) != self._digest:
            # There will be no last byte to keep back.
            raise DigestMismatch(f"upstream says that {self._digest} is empty, which has another digest")
        self._size = stream.size
        return stream

    async def close(self) -> None:
        """Leave upstream."""
        await self._stack.aclose()

    async def blocks(self, start: int, stop: int, before: FileIO | None) -> AsyncIterator[bytes]:
        """The bytes from `start` up to `stop`.

        Args:
            before: a file that holds the bytes in front of `start`, if they have been delivered from there.

        Raises:
            UpstreamError: upstream broke too often.
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
        stream, self._stream = self._stream, None
        if stream is not None and stream.start != start:
            stream = None
        while position < stop:
            try:
                stream = stream or await self._connect(position)
                async for block in stream.blocks():
                    # Kept beyond the next block, by the socket of a slow client or until the digest is known.
                    piece = bytes(block[: stop - position])
                    position += len(piece)
                    failures = 0
                    yield piece
                    if position >= stop:
                        return
                raise UpstreamDisconnected(f"upstream ended {self._digest} at byte {position}")
            except UpstreamError:
                failures += 1
                stream = None
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
