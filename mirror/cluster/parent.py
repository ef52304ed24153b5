"""The stream from a node that this one follows, which is left if it holds this node up."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable

from mirror.download.source import BlobStream
from mirror.errors import UpstreamError

# A node that has sent less in this time of waiting is compared with the one above it.
_WINDOW_S, _MIN_BYTES_PER_S = 5.0, 1_000_000


class PeerSlow(UpstreamError):
    """The node sends much less than the one above it has."""

    reason = "slow"


class ParentStream:
    """A range of a blob from a node that has another one above it.

    Args:
        is_behind: returns whether the node above has more bytes from a position on; asked only if few have come.
        clock: seconds.

    Attributes:
        start, size, is_partial: see `mirror.download.source.BlobStream`.
    """

    def __init__(
        self, stream: BlobStream, is_behind: Callable[[int], Awaitable[bool]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.start, self.size, self.is_partial = stream.start, stream.size, stream.is_partial
        self._stream = stream
        self._is_behind = is_behind
        self._clock = clock

    async def blocks(self) -> AsyncIterator[bytes | memoryview]:
        """See `BlobStream`. Only waits for the node count, not those for the disk of this one. Raises PeerSlow."""
        position, count, waited, blocks = self.start, 0, 0.0, self._stream.blocks()
        while True:
            began = self._clock()
            try:
                block = await anext(blocks)
            except StopAsyncIteration:
                return
            waited += self._clock() - began
            count, position = count + len(block), position + len(block)
            yield block
            # Not kept while the next one is awaited.
            del block
            if waited >= _WINDOW_S:
                if count < waited * _MIN_BYTES_PER_S and position < self.size and await self._is_behind(position):
                    raise PeerSlow(f"{count} bytes in {waited:.0f} s, and the node above has more")
                count, waited = 0, 0.0
