"""The source of a blob in a cluster: upstream for the node that has the lease, other nodes for the others."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial

import prometheus_client
import structlog

from mirror.cluster.checksums import CheckedStream, DamagedChunk
from mirror.cluster.grants import Grants
from mirror.cluster.lease import Alone, Follow, Leases, Own
from mirror.cluster.parent import ParentStream
from mirror.cluster.peer_protocol import PeerRefused
from mirror.cluster.peers import Peers
from mirror.cluster.salvage import Salvage, SalvagedStream, Upstream
from mirror.core.bounded_cache import BoundedCache
from mirror.core.digest import Digest
from mirror.core.pieces import CHUNK
from mirror.core.trailing import Ranges
from mirror.download.source import BlobRange, BlobStream
from mirror.errors import ConnectionWithdrawn, UpstreamError, UpstreamRefusal, UpstreamUnreachable

log = structlog.get_logger(__name__)

# The search for a node that sends bytes ends, and upstream is asked, before clients give up.
_TIMEOUT_S = 12.0
# So is the wait for a node that expects bytes from a slow upstream: its own request has failed by then, and it says so.
_WAIT_S = 16.0
_MAX_BLOBS = 10_000
# How long a lease that was lost is not taken back.
_LOST_S = 60.0
# After such a silence of upstream, or of this process, another node may have taken a lease over.
_SILENCE_S = 1.0


class ClusterSource:
    """Opens streams of blobs, each from the node or upstream that the lease of the blob names.

    Args:
        is_stored_here: whether the bytes of a blob that is fetched here can be read by other nodes.
        takeovers: counts the leases that were taken from other nodes, by the reason.
    """

    def __init__(
        self,
        leases: Leases,
        peers: Peers,
        grants: Grants,
        is_stored_here: Callable[[Digest], bool],
        takeovers: prometheus_client.Counter,
    ) -> None:
        self._leases = leases
        self._peers = peers
        self._grants = grants
        self._is_stored_here = is_stored_here
        self._takeovers = takeovers
        # The nodes whose last stream of a blob broke off, and why, until the next stream of that blob.
        self._broken: BoundedCache[Digest, dict[str, str]] = BoundedCache(_MAX_BLOBS)
        # The nodes that have sent bytes of a blob which is not verified yet.
        self._senders: BoundedCache[Digest, frozenset[str]] = BoundedCache(_MAX_BLOBS)
        self._salvage = Salvage(peers)
        # Blobs whose lease another node has just taken from this one, until a node sends them.
        self._lost: BoundedCache[Digest, bool] = BoundedCache(_MAX_BLOBS)
        # Streams from nodes that are open.
        self._parents: Counter[tuple[Digest, str]] = Counter()
        # Streams from upstream that are open, by blob.
        self._open: Counter[Digest] = Counter()

    @contextlib.asynccontextmanager
    async def open(self, wanted: BlobRange, upstream: Upstream) -> AsyncIterator[BlobStream]:
        """Open a stream. Raises like `mirror.download.source.Source.open`."""
        async with AsyncExitStack() as stack:
            answer = await self._found(wanted, stack)
            if isinstance(answer, Own):
                yield await stack.enter_async_context(self._owned(wanted, upstream))
            elif isinstance(answer, Alone):
                yield await stack.enter_async_context(upstream(wanted.start, wanted.stop))
            else:
                yield answer

    def follows(self, digest: Digest) -> bool:
        """Whether the bytes of a blob come from other nodes now."""
        return digest in self._senders and not self._open[digest]

    def reads_from(self, digest: Digest, node: str) -> bool:
        """Whether this process receives a blob from a node, to which it must not send it then."""
        return (digest, node) in self._parents

    async def ranges(self, wanted: BlobRange, known: Collection[int]) -> Ranges | None:
        """What the node has from which a blob comes; see `mirror.download.source.Source.ranges`."""
        digest = wanted.digest
        nodes = [node for other, node in self._parents if other == digest] if self.follows(digest) else []
        return await self._peers.ranges(nodes[-1], wanted, known) if nodes else None

    def penalize(self, digest: Digest) -> bool:
        """Ask the nodes no more that have sent bytes of a blob which are wrong; False if no node has."""
        self._salvage.forget(digest)
        senders = self._senders.pop(digest) or frozenset()
        for node in senders:
            self._note_poisoned(node, digest, "its bytes have another digest")
        return bool(senders)

    async def _found(self, wanted: BlobRange, stack: AsyncExitStack) -> Own | Alone | BlobStream:
        """Ask for the lease until this node has it, or a node sends the blob."""
        digest, loop = wanted.digest, asyncio.get_running_loop()
        scope, began = self._grants.scope(wanted.repository), loop.time()
        broken, suspect, reason = self._broken.pop(digest) or {}, "", ""
        while loop.time() < began + _TIMEOUT_S:
            answer = await self._leases.ask(digest, suspect, scope, may_own=self._is_stored_here(digest))
            if not isinstance(answer, Follow):
                self._lost.pop(digest)
                if suspect and isinstance(answer, Own):
                    self._note_takeover(wanted, answer, reason)
                return answer
            checksums = await self._leases.checksums(digest) if answer.is_held else None
            nodes = [node for node in self._reachable(answer) if node not in broken]
            for number, node in enumerate(nodes, 1):
                if loop.time() >= began + _TIMEOUT_S:
                    return Alone()
                sender = _Sender(node, nodes[number] if number < len(nodes) else None, began + _WAIT_S - loop.time())
                try:
                    if checksums is None:
                        return await stack.enter_async_context(self._from_node(sender, wanted))
                    return await stack.enter_async_context(self._checked(sender, wanted, checksums))
                except UpstreamError as error:
                    broken[node] = error.reason
            if self._lost.get(digest, loop.time()):
                # The new owner may live, and not be reached from here only. It would be stopped by losing the lease again.
                return Alone()
            if broken.get(answer.nodes[-1]) == PeerRefused.reason:
                # The secrets differ. The owner lives: two nodes would take the lease from each other.
                return Alone()
            suspect, reason = answer.value, broken.get(answer.nodes[-1], UpstreamUnreachable.reason)
        return Alone()

    def _reachable(self, answer: Follow) -> list[str]:
        """The nodes that have not failed of late; without an owner that neither beats nor could be reached."""
        *parents, owner = answer.nodes
        is_dead = answer.is_silent and self._peers.is_lost(owner)
        return [node for node in (parents if is_dead else answer.nodes) if not self._peers.avoids(node)]

    @contextlib.asynccontextmanager
    async def _from_node(self, sender: _Sender, wanted: BlobRange) -> AsyncIterator[BlobStream]:
        """The stream from a node. If it breaks off, the next stream of the blob comes from elsewhere."""
        node, above = sender.node, sender.above
        async with self._peers.stream(node, wanted, sender.wait_s) as stream:
            await self._grants.adopt("blob", wanted.repository, wanted.digest, stream.size)
            self._note_sender(wanted.digest, node)
            self._lost.pop(wanted.digest)
            self._parents[wanted.digest, node] += 1
            try:
                yield stream if above is None else ParentStream(stream, partial(self._peers.has_more, above, wanted))
            except UpstreamError as error:
                self._broken.put(wanted.digest, {**(self._broken.get(wanted.digest) or {}), node: error.reason})
                # The next attempt begins at once, with another source.
                raise error.with_alternative() from error
            finally:
                self._parents[wanted.digest, node] -= 1
                if not self._parents[wanted.digest, node]:
                    del self._parents[wanted.digest, node]

    @contextlib.asynccontextmanager
    async def _checked(self, sender: _Sender, wanted: BlobRange, sums: bytes) -> AsyncIterator[BlobStream]:
        """The stream from a node that holds the whole blob, without a damaged chunk."""
        whole = replace(wanted, start=wanted.start - wanted.start % CHUNK)
        try:
            async with self._from_node(sender, whole) as stream:
                yield CheckedStream(stream, wanted.start, sums)
        except DamagedChunk as error:
            self._note_poisoned(sender.node, wanted.digest, str(error))
            raise

    def _note_poisoned(self, node: str, digest: Digest, cause: str) -> None:
        log.error("node_poisoned", node=node, digest=str(digest), cause=cause, consequence="it is not asked for a while")
        self._peers.note_poisoned(node)

    @contextlib.asynccontextmanager
    async def _owned(self, wanted: BlobRange, upstream: Upstream) -> AsyncIterator[BlobStream]:
        """The stream from upstream. What upstream answers at first is shared with the nodes that wait for this one."""
        digest = wanted.digest
        async with AsyncExitStack() as stack:
            try:
                stream = await self._open_owned(wanted, upstream, stack)
            except (UpstreamRefusal, UpstreamError) as error:
                if not self._open[digest]:
                    await self._end_lease(wanted, error)
                raise
            self._open[digest] += 1
            stack.callback(self._closed, digest)
            if wanted.start == 0 and not self._salvage.nodes(digest):
                self._senders.pop(digest)
            try:
                yield _OwnedStream(stream, partial(self._is_owned, digest), partial(self._leases.confirm, digest))
            finally:
                if isinstance(stream, SalvagedStream):
                    for node in stream.senders:
                        self._note_sender(digest, node)

    async def _open_owned(self, wanted: BlobRange, upstream: Upstream, stack: AsyncExitStack) -> BlobStream:
        if not self._salvage.nodes(wanted.digest):
            return await stack.enter_async_context(upstream(wanted.start, wanted.stop))
        stream = SalvagedStream(self._salvage, wanted, upstream, await stack.enter_async_context(AsyncExitStack()))
        await stream.open(wanted.start)
        return stream

    def _note_takeover(self, wanted: BlobRange, taken: Own, reason: str) -> None:
        """Count a lease that was taken over; further connections of the blob find it taken."""
        if taken.is_new:
            log.info("lease_taken_over", digest=str(wanted.digest), at=wanted.start, reason=reason)
            self._takeovers.labels(reason).inc()
            self._salvage.note(wanted.digest, taken.others)

    def _note_sender(self, digest: Digest, node: str) -> None:
        self._senders.put(digest, (self._senders.get(digest) or frozenset()) | {node})

    def _is_owned(self, digest: Digest) -> bool:
        if self._leases.owns(digest):
            return True
        self._lost.put(digest, True, expires=asyncio.get_running_loop().time() + _LOST_S)
        return False

    def _closed(self, digest: Digest) -> None:
        self._open[digest] -= 1
        if not self._open[digest]:
            del self._open[digest]

    async def _end_lease(self, wanted: BlobRange, error: UpstreamRefusal | UpstreamError) -> None:
        """End the lease of a blob of which nothing comes from upstream."""
        if isinstance(error, UpstreamError):
            await self._leases.fail(wanted.digest, error, self._grants.scope(wanted.repository))
        else:
            # Upstream has refused it to this repository only: the other nodes ask for theirs.
            await self._leases.release(wanted.digest)


@dataclass(frozen=True, slots=True)
class _Sender:
    """A node that is asked for a blob.

    Attributes:
        above: the next node that would be asked.
        wait_s: how long to wait for bytes that the node expects, in seconds.
    """

    node: str
    above: str | None
    wait_s: float


class _OwnedStream:
    """A stream from upstream that ends when another node has taken the lease: this node then follows that one."""

    def __init__(self, stream: BlobStream, is_owned: Callable[[], bool], confirm: Callable[[], Awaitable[None]]) -> None:
        self.start, self.size, self.is_partial = stream.start, stream.size, stream.is_partial
        self._stream = stream
        self._is_owned = is_owned
        self._confirm = confirm

    async def blocks(self) -> AsyncIterator[bytes | memoryview]:
        """See `BlobStream`. Raises ConnectionWithdrawn when the lease is lost."""
        clock = asyncio.get_running_loop().time
        came = clock()
        async for block in self._stream.blocks():
            last, came = came, clock()
            if came - last > _SILENCE_S:
                await self._confirm()
                # What Redis took is no silence: each block would wait for it.
                came = clock()
            yield block
            # Not kept while the next one is awaited.
            del block
            if not self._is_owned():
                raise ConnectionWithdrawn("another node has taken over")
