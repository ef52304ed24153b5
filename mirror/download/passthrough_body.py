"""A whole reader past the store, for a blob that the store holds but cannot vouch for in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor

from mirror.download.passthrough_stream import PassthroughStream
from mirror.download.reader import Span
from mirror.errors import StorageError, UpstreamTimeout


class PassthroughBody:
    """A blob by the reader's own stream from upstream, verified like any other (`PassthroughStream`).

    Args:
        threads: what a body has; there is no file to read.
        first_byte: seconds until the first byte has to be there.
    """

    bypassed = True

    def __init__(self, bypass: PassthroughStream, threads: Executor, first_byte: float) -> None:
        self.threads = threads
        self._bypass = bypass
        self._position = -1
        self._deadline = asyncio.get_running_loop().time() + first_byte
        self._first_byte = first_byte

    async def sized(self) -> int:
        """What upstream says."""
        return await self._open(0)

    async def ready(self, start: int, stop: int) -> None:
        """When upstream's stream from there stands."""
        if start != self._position:
            await self._open(start)

    async def spans(self, start: int, stop: int) -> AsyncIterator[Span | bytes]:
        """The bytes as they come."""
        async for block in self._bypass.blocks(start, stop, None):
            yield block

    async def stored(self) -> bool:
        """It never is."""
        raise StorageError("this stream goes past the store", "io")

    async def close(self) -> None:
        """Leave upstream."""
        await self._bypass.close()

    async def _open(self, position: int) -> int:
        try:
            async with asyncio.timeout_at(self._deadline):
                size = await self._bypass.open(position)
        except TimeoutError as error:
            raise UpstreamTimeout(f"no byte of a blob past the store within {self._first_byte:g} s") from error
        self._position = position
        return size
