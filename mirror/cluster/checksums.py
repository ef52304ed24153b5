"""Checksums of the chunks of a blob that a node holds, by which another node finds a damaged chunk before it takes a byte of it.

The digest says only at the end of a blob that one of its bytes is wrong, when clients have most of it. The node that has
verified a blob therefore writes a CRC-32 of each MiB into Redis. They prove nothing: the digest is verified all the same.
"""

from __future__ import annotations

import os
import zlib
from array import array
from collections.abc import AsyncIterator
from typing import IO, Final

from mirror.core.pieces import CHUNK
from mirror.download.source import BlobStream
from mirror.errors import UpstreamProtocolError

CHECKSUM_BYTES: Final = 4
"""Bytes of the checksum of one chunk."""
_READ_BYTES = 256 << 10


class DamagedChunk(UpstreamProtocolError):
    """A node has sent bytes that are not those of the blob."""


def checksums_of(file: IO[bytes], size: int) -> bytes:
    """Return the checksums of a whole file, four bytes for each chunk. Blocks. Raises OSError."""
    found = array("I")
    for start in range(0, size, CHUNK):
        position, stop, sum_ = start, min(start + CHUNK, size), 0
        while position < stop:
            piece = os.pread(file.fileno(), min(_READ_BYTES, stop - position), position)
            if not piece:
                raise OSError("the file is shorter than the blob")
            sum_ = zlib.crc32(piece, sum_)
            position += len(piece)
        found.append(sum_)
    return found.tobytes()


class CheckedStream:
    """A range of a blob from a node, of which each whole chunk is checked before it is handed out.

    Args:
        stream: begins at the begin of a chunk.
        start: where the range begins; what is in front of it is only checked.
        checksums: of the whole blob; see `checksums_of`.

    Attributes:
        start, size, is_partial: see `mirror.download.source.BlobStream`.
    """

    def __init__(self, stream: BlobStream, start: int, checksums: bytes) -> None:
        self.start, self.size, self.is_partial = start, stream.size, stream.is_partial
        self._stream = stream
        self._sums = array("I", checksums)

    async def blocks(self) -> AsyncIterator[bytes | memoryview]:
        """See `BlobStream`. What ends within a chunk is handed out unchecked. Raises DamagedChunk."""
        position, chunk = self._stream.start, bytearray()
        async for block in self._stream.blocks():
            rest = memoryview(block)
            while rest:
                piece = rest[: CHUNK - len(chunk)]
                chunk += piece
                rest = rest[len(piece) :]
                if len(chunk) == CHUNK or position + len(chunk) == self.size:
                    self._check(position, chunk)
                    yield memoryview(chunk)[max(0, self.start - position) :]
                    position, chunk = position + len(chunk), bytearray()
            del block, rest
        if chunk:
            yield memoryview(chunk)[max(0, self.start - position) :]

    def _check(self, position: int, chunk: bytearray) -> None:
        index = position // CHUNK
        if index < len(self._sums) and zlib.crc32(chunk) != self._sums[index]:
            raise DamagedChunk(f"the bytes from {position} on are damaged")
