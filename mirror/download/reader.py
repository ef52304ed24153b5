"""The bodies of blobs that are held or still arriving, as their readers get them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from io import FileIO
from typing import Protocol

from mirror import demand
from mirror.core.pieces import CHUNK
from mirror.core.trailing import Ranges
from mirror.core.urgency import Urgency
from mirror.download.ingest import Ingest
from mirror.download.passthrough import PassthroughStream
from mirror.errors import DigestMismatch, StorageError, UpstreamProtocolError, UpstreamTimeout
from mirror.storage.blobs import CachedBlob

# No span is longer, so that a reader's progress can be observed and cancelled.
_MAX_SPAN_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes that can be sent now, straight from a file.

    Attributes:
        file: open for reading.
        start: position of the first byte.
        count: how many, at least one.
    """

    file: FileIO
    start: int
    count: int


class Body(Protocol):
    """The bytes of a blob, whatever state it is in. Close it when done.

    Attributes:
        bypassed: whether they come past the store.
        threads: read the files of spans.
    """

    @property
    def bypassed(self) -> bool: ...
    @property
    def threads(self) -> Executor: ...

    async def sized(self) -> int:
        """Bytes of the whole blob, as soon as they are known; raises MirrorError if that fails."""
        ...

    async def ready(self, start: int, stop: int) -> None:
        """Return when the first byte of the part from `start` to `stop` can be sent.

        Until then a failure can still become an error response.
        """
        ...

    def spans(self, start: int, stop: int) -> AsyncIterator[Span | bytes]:
        """The bytes from `start` up to `stop`, as they can be sent; raises MirrorError when they end short.

        The whole blob ends only when its digest has matched. A part is passed on as upstream sent it: a client that asks for
        parts checks the whole, or uses its own index.
        """
        ...

    async def stored(self) -> bool:
        """Wait until the blob is held, without reading a byte; whether it had to be fetched.

        Raises:
            MirrorError: it cannot be fetched, or the store cannot take it.
        """
        ...

    async def close(self) -> None:
        """Stop reading."""
        ...


class HeldBody:
    """A blob that is held."""

    bypassed = False

    def __init__(self, blob: CachedBlob, threads: Executor) -> None:
        self._blob = blob
        self.threads = threads

    async def sized(self) -> int:
        """Bytes of the blob."""
        return self._blob.size

    async def ready(self, start: int, stop: int) -> None:
        """Return at once."""

    async def spans(self, start: int, stop: int) -> AsyncIterator[Span | bytes]:
        """One span."""
        yield Span(self._blob.file, start, stop - start)

    def arrived(self, position: int) -> tuple[int, int] | None:
        """Where the first bytes lie that can be read now, from a position on: all of them."""
        return (position, self._blob.size) if position < self._blob.size else None

    def ranges(self) -> Ranges:
        """The ranges of what can be read: the whole blob."""
        return [(0, self._blob.size)] if self._blob.size else []

    async def stored(self) -> bool:
        """Return at once: it is."""
        return False

    async def close(self) -> None:
        """Close the descriptor."""
        self._blob.close()


class StreamingBody:
    """A reader of an ingest. Neither its pace nor its end changes anything for the ingest or for other readers.

    If the store cannot take the blob, the reader continues with its own stream from upstream, from its own position.

    Attributes:
        bypassed: whether it does.

    Args:
        urgency: unless it is a client's, no deadline holds, and the reader does not go past the store.
        only_stored: the reader never goes past the store.
    """

    def __init__(self, ingest: Ingest, urgency: Urgency = Urgency.CLIENT, *, only_stored: bool = False) -> None:
        self.threads = ingest.threads
        self._ingest = ingest
        self._urgency = urgency
        self._only_stored = only_stored or urgency is not Urgency.CLIENT
        self._file: FileIO | None = None
        self._bypass: PassthroughStream | None = None
        self._size: int | None = None
        # One for all waits before the first byte, second attempts included: clients have one deadline as well.
        self._deadline = (
            math.inf if urgency is not Urgency.CLIENT else asyncio.get_running_loop().time() + ingest.limits.first_byte_s
        )
        # The source's, not the reader's own: it may have joined an ingest that began before the configuration changed.
        self._held = ExitStack()
        self._held.enter_context(ingest.source.keep_open())
        client = demand.client.get() if urgency is Urgency.CLIENT else None
        self._address = None if client is None else client.address
        ingest.join(urgency, self._address)

    @property
    def bypassed(self) -> bool:
        return self._bypass is not None

    async def sized(self) -> int:
        """Wait for the size."""
        while True:
            try:
                self._size = await self._ingest.sized(self._deadline)
            except DigestMismatch as error:
                self._move_on(error)
                continue
            except StorageError:
                if self._only_stored:
                    raise
                self._size = await self._past_the_store(0)
            return self._size

    async def ready(self, start: int, stop: int) -> None:
        """Wait for the byte at `start`."""
        while self._bypass is None:
            try:
                size = await self._ingest.sized(self._deadline)
                if self._size not in (None, size):
                    raise UpstreamProtocolError(f"{self._ingest.digest} had {self._size} bytes at first, and now {size}")
                until = _until(start, start, stop, size)
                await self._ingest.ready(start, until, self._deadline, whole=_is_whole(start, stop, size))
                break
            except DigestMismatch as error:
                self._move_on(error)
            except StorageError:
                if self._only_stored:
                    raise
                await self._past_the_store(start)

    async def spans(self, start: int, stop: int) -> AsyncIterator[Span | bytes]:
        """What has arrived, in spans that are as large as possible."""
        position, whole = start, _is_whole(start, stop, self._size)
        while position < stop and self._bypass is None:
            try:
                until = _until(start, position, stop, self._size)
                end = min(await self._ingest.readable(position, until, whole=whole), stop, position + _MAX_SPAN_BYTES)
                if self._file is None:
                    self._file = self._ingest.open_file()
            except StorageError:
                if self._only_stored:
                    raise
                self._leave_store()
                break
            yield Span(self._file, position, end - position)
            position = end
        if self._bypass is not None and position < stop:
            async for block in self._bypass.blocks(position, stop, None if start else self._file):
                yield block

    def arrived(self, position: int) -> tuple[int, int] | None:
        """Where the first bytes lie that have arrived, from a position on; None if none have. The size must be known."""
        return self._ingest.arrived(position)

    def ranges(self) -> Ranges:
        """The first ranges that have arrived."""
        return self._ingest.ranges()

    async def stored(self) -> bool:
        """Wait for the end of the ingest, and of the second try if there is one."""
        while True:
            try:
                await self._ingest.committed()
            except DigestMismatch as error:
                self._move_on(error)
            else:
                return True

    async def close(self) -> None:
        """Leave the ingest, which continues."""
        self._ingest.leave(self._urgency, self._address)
        if self._file is not None:
            self._file.close()
        if self._bypass is not None:
            await self._bypass.close()
        self._held.close()

    def _leave_store(self) -> PassthroughStream:
        ingest = self._ingest
        self._bypass = PassthroughStream(ingest.digest, ingest.source, ingest.threads, ingest.limits.attempts, self._size)
        return self._bypass

    async def _past_the_store(self, position: int) -> int:
        """Turn to the reader's own stream before any byte was sent; returns the bytes of the whole blob."""
        bypass = self._leave_store()
        try:
            async with asyncio.timeout_at(self._deadline):
                return await bypass.open(position)
        except TimeoutError as error:
            raise UpstreamTimeout(f"no byte of {self._ingest.digest} in time past the store") from error

    def _move_on(self, error: DigestMismatch) -> None:
        """Turn to the second try if there is one; the first met a wrong digest before any byte was sent."""
        successor = self._ingest.successor
        if successor is None:
            raise error
        successor.join(self._urgency, self._address)
        self._ingest.leave(self._urgency, self._address)
        self._ingest = successor


def _until(start: int, position: int, stop: int, size: int | None) -> int:
    """How far a reader of a part is sure to read: to its end; but to the blob's end only after it has read as much already.

    Clients request to the end and hang up when they have their part.
    """
    return stop if stop != size else min(stop, position + max(CHUNK, position - start))


def _is_whole(start: int, stop: int, size: int | None) -> bool:
    return start == 0 and stop == size
