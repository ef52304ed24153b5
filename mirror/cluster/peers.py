"""The other nodes, as a client of theirs: streams of blobs, and which nodes are not asked for now."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import replace

import aiohttp
import structlog
from yarl import URL

from mirror import demand
from mirror.cluster.peer_protocol import (
    ARRIVED_HEADER,
    HOP_HEADER,
    NEWS_PARAMETER,
    NODE_HEADER,
    PeerBusy,
    PeerRefused,
    PeerWaiting,
    raise_for,
)
from mirror.cluster.secret import ClusterSecret
from mirror.core.bounded_cache import BoundedCache
from mirror.core.digest import Digest
from mirror.core.hmac_token import SignedRequest
from mirror.core.manifest import MAX_MANIFEST_BYTES
from mirror.core.trailing import Ranges, parsed, rendered_starts
from mirror.download.source import BlobRange
from mirror.errors import UpstreamError, UpstreamProtocolError, UpstreamTimeout, UpstreamTooSlow, UpstreamUnreachable
from mirror.throttled_log import ThrottledLog
from mirror.tracing import request_id
from mirror.upstream.blob import Pace, UpstreamBlob
from mirror.upstream.http import Http, drain
from mirror.upstream.intake import Intake
from mirror.upstream.receiver import open_body

log = structlog.get_logger(__name__)

_MAX_NODES = 4096
# A longer chain is a mistake: ten hops reach a thousand nodes that send to two others each.
_MAX_HOPS = 12
_MAX_BLOBS = 10_000
# Of the blob; a node above that has less is not worth a change.
_MORE_BYTES = 1 << 20
# A node that waits for upstream itself answers at once or after a moment. It learns within this time whether upstream fails.
_WAITING_S, _POLL_INTERVAL_S = 20.0, 0.05
# A node that could not be reached is left alone for a moment, one that has sent wrong bytes for longer.
_UNREACHABLE_S, _POISONED_S = 3.0, 600.0
# One that does not beat either is left alone for longer.
_LOST_S = 300.0
# For all of a manifest; after that upstream is asked.
_MANIFEST_TIMEOUT_S = 5.0
# How long operators are told of a node that has refused a request.
_REFUSED_S = 300.0


class Peers:
    """Requests blobs of other nodes. The name of a node is the URL of its address for other nodes.

    Args:
        intake: the buffers of all connections.
        received: counts the bytes of bodies.
        tls: for nodes with https; None for the defaults.

    Attributes:
        me: the name of this node, which it says in its requests.
        poisoned: counts the nodes that have sent wrong bytes.
        refused: counts the requests that nodes have refused.
        refused_by: the node that has refused the last request, and when; None if none has.
    """

    def __init__(
        self,
        http: Http,
        intake: Intake,
        secret: ClusterSecret,
        received: Callable[[float], None],
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.me = ""
        self.poisoned: Callable[[], None] = _nothing
        self.refused: Callable[[], None] = _nothing
        self.refused_by: tuple[str, float] | None = None
        self._log = ThrottledLog(log, burst=1, interval=60.0)
        self.clock: Callable[[], float] = time.monotonic
        self._http = http
        self._intake = intake
        self._secret = secret
        self._received = received
        self._tls: ssl.SSLContext | bool = True if tls is None else tls
        self._avoided: BoundedCache[str, bool] = BoundedCache(_MAX_NODES)
        self._lost: BoundedCache[str, bool] = BoundedCache(_MAX_NODES)
        self._hops: BoundedCache[Digest, int] = BoundedCache(_MAX_BLOBS)

    def avoids(self, node: str) -> bool:
        """Whether a node has failed so lately that it is not asked."""
        return self._avoided.get(node, self.clock()) is not None

    def is_lost(self, node: str) -> bool:
        """Whether a node could not be reached of late, so that it is not asked unless it beats."""
        return self._lost.get(node, self.clock()) is not None

    def hops(self, digest: Digest) -> int:
        """How many nodes were between this one and upstream when the last stream of a blob was opened."""
        return self._hops.get(digest) or 0

    def note_poisoned(self, node: str) -> None:
        """Ask a node no more for a while: its bytes had another digest."""
        self.poisoned()
        self._avoid(node, _POISONED_S)

    @property
    def refusing(self) -> str | None:
        """The node that has refused this one lately: their secrets differ."""
        by = self.refused_by
        return None if by is None or self.clock() - by[1] > _REFUSED_S else by[0]

    @contextlib.asynccontextmanager
    async def stream(self, node: str, wanted: BlobRange, wait_s: float) -> AsyncIterator[NodeStream]:
        """Open the stream of a range of a blob. Raises like `blob`.

        Args:
            wait_s: how long to wait for a first byte that the node expects, in seconds.
        """
        async with contextlib.AsyncExitStack() as stack:
            found = NodeStream(self, node, wanted, stack)
            await found.open(wanted.start, wait_s)
            yield found

    @contextlib.asynccontextmanager
    async def blob(self, node: str, wanted: BlobRange, *, arrived: bool = False) -> AsyncIterator[UpstreamBlob]:
        """Open the stream of a range of a blob.

        Args:
            arrived: only of what the node has now; the stream ends where that does.

        Raises:
            PeerAbsent, PeerWaiting, PeerBusy: the node has answered so.
            UpstreamError: it does not answer, breaks off, or stalls; also while the stream is read.
        """
        answered = False
        try:
            async with (
                self._request(node, wanted, "&arrived=1" if arrived else "") as response,
                contextlib.AsyncExitStack() as resources,
            ):
                answered = True
                self._lost.pop(node)
                await raise_for(response)
                self._note_hops(response, wanted.digest)
                yield self._opened(response, wanted, resources)
        except PeerRefused:
            self.refused()
            self.refused_by = node, self.clock()
            self._log.log("warning", "node_refuses", node=node, consequence="this node fetches what that one has by itself")
            raise
        except (UpstreamTimeout, UpstreamUnreachable):
            # A body that stalls may be the fault of upstream.
            if not answered:
                self._avoid(node, _UNREACHABLE_S)
                self._lost.put(node, True, expires=self.clock() + _LOST_S)
            raise

    async def ranges(self, node: str, wanted: BlobRange, known: Collection[int]) -> Ranges | None:
        """What a node has of a blob, as soon as a range begins at none of the known positions, or after a moment.

        None if it does not answer, or is of a version that does not say it. No node is avoided for that.
        """
        # A node of such a version takes it for a request for bytes.
        first = replace(wanted, start=0, stop=1)
        try:
            async with self._request(node, first, f"&arrived=1&{NEWS_PARAMETER}={rendered_starts(known)}") as response:
                await drain(response)
                return parsed(response.headers.get(ARRIVED_HEADER, ""))
        except UpstreamError:
            return None

    def _request(
        self, node: str, wanted: BlobRange, parameters: str
    ) -> contextlib.AbstractAsyncContextManager[aiohttp.ClientResponse]:
        repository = wanted.repository
        path = f"/v2/{repository.registry}/{repository.path}/blobs/{wanted.digest}?urgency={demand.urgency.get()().name}"
        path += parameters
        token = self._secret.token(SignedRequest("GET", path, wanted.header, node))
        headers = {
            "Range": wanted.header,
            "Authorization": token,
            "X-Request-Id": request_id.get(),
            NODE_HEADER: self.me,
        }
        return self._http.request("GET", _url(node, path), headers, tls=self._tls)

    async def manifest(self, node: str, wanted: BlobRange) -> bytes | None:
        """Read a whole manifest within a few seconds; None if the node does not send it, or more than a manifest may have."""
        found = bytearray()
        try:
            async with asyncio.timeout(_MANIFEST_TIMEOUT_S), self.blob(node, wanted) as stream:
                if stream.size > MAX_MANIFEST_BYTES:
                    return None
                async for block in stream.blocks():
                    found += block
        except (UpstreamError, TimeoutError):
            return None
        return bytes(found)

    async def has_more(self, node: str, wanted: BlobRange, position: int) -> bool:
        """Whether a node has a MiB of a blob from a position on, or the rest of it."""
        try:
            async with self.blob(node, replace(wanted, start=position), arrived=True) as found:
                return found.stop - position >= min(_MORE_BYTES, found.size - position)
        except UpstreamError:
            return False

    def _opened(self, response: aiohttp.ClientResponse, wanted: BlobRange, resources: contextlib.AsyncExitStack) -> UpstreamBlob:
        body = open_body(response, self._intake, self._http.limits.stall)
        resources.push(lambda error, *_: body.close(is_used=error is not None))
        blob = UpstreamBlob(response, body, wanted.digest, wanted.start, self._received)
        if wanted.size is not None and blob.size != wanted.size:
            raise UpstreamProtocolError(f"node {response.url.host} says that {wanted.digest} has {blob.size} bytes")
        return blob

    def _note_hops(self, response: aiohttp.ClientResponse, digest: Digest) -> None:
        text = response.headers.get(HOP_HEADER, "")
        hops = 1 + (int(text) if text.isascii() and text.isdigit() else 0)
        if hops > _MAX_HOPS:
            raise PeerBusy(f"node {response.url.host} is {hops - 1} hops away from upstream")
        self._hops.put(digest, hops)

    def _avoid(self, node: str, seconds: float) -> None:
        self._avoided.put(node, True, expires=self.clock() + seconds)


class NodeStream:
    """A range of a blob from one node. If nothing comes, the node is asked again: its upstream may be slow.

    Attributes:
        start, size, is_partial: see `mirror.download.source.BlobStream`.
    """

    def __init__(self, peers: Peers, node: str, wanted: BlobRange, stack: contextlib.AsyncExitStack) -> None:
        self.start = wanted.start
        self._peers = peers
        self._node = node
        self._wanted = wanted
        self._stack = stack

    @property
    def size(self) -> int:
        return self._blob.size

    @property
    def is_partial(self) -> bool:
        return self._blob.is_partial

    async def open(self, position: int, wait_s: float = _WAITING_S) -> None:
        """Request the rest from a position on, in place of the present request."""
        deadline = asyncio.get_running_loop().time() + wait_s
        while True:
            await self._stack.aclose()
            try:
                wanted = replace(self._wanted, start=position)
                self._blob = await self._stack.enter_async_context(self._peers.blob(self._node, wanted))
            except PeerWaiting:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(_POLL_INTERVAL_S)
            else:
                return

    async def blocks(self) -> AsyncIterator[memoryview]:
        """The bytes as they arrive; see `BlobStream`. Raises UpstreamTimeout if a node answers, but sends next to nothing."""
        position, size, pace = self.start, self.size, Pace(self._node)
        while True:
            begin = position
            try:
                async for block in self._blob.blocks():
                    pace.check(len(block))
                    position += len(block)
                    yield block
                    # Not kept while the next one is awaited.
                    del block
            except UpstreamTooSlow:
                raise
            except UpstreamTimeout:
                if position == begin:
                    raise
                await self.open(position)
                if self.size != size:
                    raise UpstreamProtocolError(f"node {self._node} says another size than before") from None
            else:
                return


def _nothing() -> None:
    """Counts nothing."""


def _url(node: str, path: str) -> URL:
    try:
        return URL(node + path, encoded=True)
    except ValueError as error:
        raise UpstreamProtocolError(f"a node is called {node[:100]!r}, which is no URL") from error
