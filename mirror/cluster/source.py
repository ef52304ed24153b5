"""The source of a blob in a cluster: upstream for the node that has the lease, other nodes for the others."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack

import prometheus_client
import structlog

from mirror.cluster.grants import Grants
from mirror.cluster.lease import Alone, Follow, Leases, Own
from mirror.cluster.peers import Peers
from mirror.core.bounded_cache import BoundedCache
from mirror.core.digest import Digest
from mirror.download.source import BlobRange, BlobStream
from mirror.errors import UpstreamError, UpstreamRefusal, UpstreamUnreachable

log = structlog.get_logger(__name__)

# The search for a node that sends bytes ends, and upstream is asked, before clients give up.
_TIMEOUT_S = 12.0
_MAX_BLOBS = 10_000

Upstream = Callable[[], AbstractAsyncContextManager[BlobStream]]
"""Opens the stream from upstream. Called at most once."""


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
                yield await stack.enter_async_context(upstream())
            else:
                yield answer

    def penalize(self, digest: Digest) -> bool:
        """Ask the nodes no more that have sent bytes of a blob which are wrong; False if no node has."""
        senders = self._senders.pop(digest) or frozenset()
        for node in senders:
            log.error("node_poisoned", node=node, digest=str(digest), consequence="it is not asked for a while")
            self._peers.note_poisoned(node)
        return bool(senders)

    async def _found(self, wanted: BlobRange, stack: AsyncExitStack) -> Own | Alone | BlobStream:
        """Ask for the lease until this node has it, or a node sends the blob."""
        digest, loop = wanted.digest, asyncio.get_running_loop()
        scope, deadline = self._grants.scope(wanted.repository), loop.time() + _TIMEOUT_S
        broken, suspect, reason = self._broken.pop(digest) or {}, "", ""
        while loop.time() < deadline:
            answer = await self._leases.ask(digest, suspect, scope, may_own=self._is_stored_here(digest))
            if not isinstance(answer, Follow):
                if suspect and isinstance(answer, Own):
                    log.info("lease_taken_over", digest=str(digest), at=wanted.start, reason=reason)
                    self._takeovers.labels(reason).inc()
                return answer
            for node in answer.nodes:
                if node in broken or self._peers.avoids(node):
                    continue
                try:
                    return await stack.enter_async_context(self._from_node(node, wanted))
                except UpstreamError as error:
                    broken[node] = error.reason
            suspect, reason = answer.value, broken.get(answer.nodes[-1], UpstreamUnreachable.reason)
        return Alone()

    @contextlib.asynccontextmanager
    async def _from_node(self, node: str, wanted: BlobRange) -> AsyncIterator[BlobStream]:
        """The stream from a node. If it breaks off, the next stream of the blob comes from elsewhere."""
        async with self._peers.stream(node, wanted) as stream:
            await self._grants.adopt("blob", wanted.repository, wanted.digest, stream.size)
            self._senders.put(wanted.digest, (self._senders.get(wanted.digest) or frozenset()) | {node})
            try:
                yield stream
            except UpstreamError as error:
                self._broken.put(wanted.digest, {**(self._broken.get(wanted.digest) or {}), node: error.reason})
                # The next attempt begins at once, with another source.
                raise error.with_alternative() from error

    @contextlib.asynccontextmanager
    async def _owned(self, wanted: BlobRange, upstream: Upstream) -> AsyncIterator[BlobStream]:
        """The stream from upstream. What upstream answers at first is shared with the nodes that wait for this one."""
        digest = wanted.digest
        async with AsyncExitStack() as stack:
            try:
                stream = await stack.enter_async_context(upstream())
            except (UpstreamRefusal, UpstreamError) as error:
                if not self._open[digest]:
                    await self._end_lease(wanted, error)
                raise
            self._open[digest] += 1
            stack.callback(self._closed, digest)
            if wanted.start == 0:
                self._senders.pop(digest)
            yield stream

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
