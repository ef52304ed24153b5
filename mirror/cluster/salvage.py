"""What other nodes have of a blob whose owner has failed: the new owner reads that from them, the rest from upstream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace

from mirror.cluster.peer_protocol import PeerAbsent
from mirror.cluster.peers import Peers
from mirror.core.bounded_cache import BoundedCache
from mirror.core.digest import Digest
from mirror.download.source import BlobRange, BlobStream
from mirror.errors import UpstreamError

Upstream = Callable[[int, int | None], AbstractAsyncContextManager[BlobStream]]
"""Opens the stream of a range from upstream; see `mirror.download.source.Source.open`."""

_MAX_BLOBS = 10_000


class Salvage:
    """The nodes that may have bytes of blobs whose leases this node has taken over."""

    def __init__(self, peers: Peers) -> None:
        self._peers = peers
        self._nodes: BoundedCache[Digest, tuple[str, ...]] = BoundedCache(_MAX_BLOBS)

    def note(self, digest: Digest, nodes: tuple[str, ...]) -> None:
        """Ask these nodes for what they have of a blob."""
        self._nodes.put(digest, nodes)

    def forget(self, digest: Digest) -> None:
        """Ask no node for a blob any more: its bytes were wrong."""
        self._nodes.pop(digest)

    def nodes(self, digest: Digest) -> tuple[str, ...]:
        """The nodes that are still asked for a blob."""
        return tuple(node for node in self._nodes.get(digest) or () if not self._peers.avoids(node))

    def drop(self, digest: Digest, node: str) -> None:
        """Ask a node no more for a blob: it has failed."""
        self._nodes.put(digest, tuple(other for other in self._nodes.get(digest) or () if other != node))

    async def open(self, wanted: BlobRange, stack: AsyncExitStack) -> tuple[str, BlobStream] | int | None:
        """Open the stream of what a node has of the beginning of a range.

        Returns:
            The node and its stream; where else the first byte lies that a node has; None if no node has any of the range.
        """
        # All at once: each that is dead takes as long as the time limit of a connection.
        nodes = self.nodes(wanted.digest)
        begins = await asyncio.gather(*(self._first(node, wanted) for node in nodes))
        for node, first in zip(nodes, begins, strict=True):
            if first == wanted.start:
                try:
                    return node, await stack.enter_async_context(self._peers.blob(node, wanted, arrived=True))
                except UpstreamError:
                    self.drop(wanted.digest, node)
        return min((first for first in begins if first is not None and first > wanted.start), default=None)

    async def _first(self, node: str, wanted: BlobRange) -> int | None:
        """The position of the first byte of the rest of a blob that a node has; None if it has none, or fails."""
        try:
            # One byte: the whole would be sent by each node that has it.
            async with self._peers.blob(node, replace(wanted, stop=wanted.start + 1), arrived=True):
                return wanted.start
        except PeerAbsent as error:
            return error.first
        except UpstreamError:
            self.drop(wanted.digest, node)
            return None


class SalvagedStream:
    """A range of a blob, each part of it from a node that has it, else from upstream.

    Attributes:
        start, size, is_partial: see `mirror.download.source.BlobStream`.
        senders: the nodes that have sent bytes.
    """

    def __init__(self, salvage: Salvage, wanted: BlobRange, upstream: Upstream, stack: AsyncExitStack) -> None:
        self.start = wanted.start
        self.is_partial = True
        self.senders: set[str] = set()
        self._salvage = salvage
        self._wanted = wanted
        self._upstream = upstream
        self._stack = stack
        self._node: str | None = None

    @property
    def size(self) -> int:
        return self._part.size

    async def open(self, position: int) -> None:
        """Open the part that begins at a position, in place of the present one. Raises UpstreamError, UpstreamRefusal."""
        await self._stack.aclose()
        found = await self._salvage.open(replace(self._wanted, start=position), self._stack)
        if isinstance(found, tuple):
            self._node, self._part = found
            self.senders.add(self._node)
            return
        stop = self._wanted.stop
        if found is not None and (stop is None or found < stop):
            stop = found
        self._node, self._part = None, await self._stack.enter_async_context(self._upstream(position, stop))
        self.is_partial = self.is_partial and self._part.is_partial

    async def blocks(self) -> AsyncIterator[bytes | memoryview]:
        """The bytes as they arrive; see `BlobStream`."""
        position, size, stop = self.start, self.size, self._wanted.stop or self.size
        while True:
            try:
                async for block in self._part.blocks():
                    position += len(block)
                    yield block
                    del block
            except UpstreamError:
                if self._node is None:
                    raise
                self._salvage.drop(self._wanted.digest, self._node)
            if position >= stop:
                return
            await self.open(position)
            if self.size != size:
                return
