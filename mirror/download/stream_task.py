"""Reads a stream from upstream in a task of its own, so that what ends its connection does not end the reader."""

from __future__ import annotations

import asyncio

from mirror.download.source import BlobStream, Source


class StreamTask:
    """One stream from upstream, read one piece ahead of the reader.

    Withdrawing a connection cancels the task that uses it (`ConnectionWithdrawn`). The reader's own task may be waiting for its
    client at that moment, and could not tell that cancellation from the end of the request.
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
            # Retrieved, so that a reader who has left does not leave an unread error.
            task.exception()
