"""The address for other nodes of the cluster: blobs that this node holds or receives. It starts no fetch.

A request is a GET of the OCI distribution API, `/v2/<registry>/<repository>/blobs/<digest>`, with a range and a token.
"""

from __future__ import annotations

import asyncio
import contextlib

import structlog
from aiohttp import web

from mirror.cache.blobs import Blobs
from mirror.cluster.node import ClusterNode
from mirror.cluster.peer_protocol import ARRIVED_HEADER, FIRST_HEADER, HOP_HEADER, NEWS_PARAMETER, NODE_HEADER, WAIT_HEADER
from mirror.core import trailing
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput, RangeNotSatisfiable
from mirror.core.hmac_token import InvalidToken, SignedRequest
from mirror.core.ranges import ByteRange, Full, content_range, parse_range
from mirror.core.trailing import Ranges
from mirror.core.urgency import Urgency
from mirror.download.reader import Body, HeldBody, StreamingBody
from mirror.errors import MirrorError, StorageError, UpstreamRefusal
from mirror.listener import oci_errors
from mirror.listener.oci_errors import Problem
from mirror.listener.responses import ReadyResponse, Rendered, head, problem_response, send_spans
from mirror.listener.server import while_connected
from mirror.registry.routing import Route, Router
from mirror.throttled_log import ThrottledLog
from mirror.tracing import request_id

log = structlog.get_logger(__name__)

_UNSIGNED = Problem(401, "UNAUTHORIZED", "not a node of this cluster", "the request is not signed with the secret of the cluster")
_WAITING = Problem(503, "UNAVAILABLE", "no byte yet", "upstream has not answered this node yet", {WAIT_HEADER: "1"})
_STOPPING = Problem(503, "UNAVAILABLE", "this node takes no more requests", "it is stopping, or cannot store the blob")

# What has arrived lies in a file, whose opening takes a moment. A client waits for those who ask.
_ARRIVED_WAIT_S = 0.3
# How often a node looks for news that another one waits for; a look at a large blob takes longer.
_NEWS_INTERVAL_S, _NEWS_INTERVAL_S_PER_BYTE = 0.02, 0.05 / (1 << 30)


class _NotArrived(Exception):
    """The byte that was asked for has not arrived.

    Attributes:
        problem: the answer.
    """

    def __init__(self, first: int | None) -> None:
        super().__init__()
        headers = {} if first is None else {FIRST_HEADER: str(first)}
        self.problem = Problem(404, "BLOB_UNKNOWN", "not arrived", "this node has other bytes of the blob at most", headers)


class PeerApi:
    """Answers requests of other nodes. Rebuilt when the configuration changes.

    Args:
        node: this node.
        wait_s: the wait for a first byte, after which the other node learns that bytes are expected, and asks again.
    """

    def __init__(self, router: Router, blobs: Blobs, node: ClusterNode, wait_s: float) -> None:
        self._router = router
        self._blobs = blobs
        self._node = node
        self._wait_s = wait_s
        self._log = ThrottledLog(log)

    async def handle(self, request: web.BaseRequest, *, stopping: bool) -> web.StreamResponse:
        """Handle one request. Raises nothing but ConnectionError, when the other node has disconnected.

        Args:
            stopping: the mirror is stopping: no new request is served.
        """
        name, wanted = request_id.get(), request.headers.get("Range", "")
        try:
            self._node.secret.check(
                SignedRequest(request.method, request.raw_path, wanted, self._node.name), request.headers.get("Authorization", "")
            )
            route = self._router.route(request.raw_path)
        except InvalidToken:
            return problem_response(_UNSIGNED, name)
        except (InvalidInput, UpstreamRefusal):
            route = None
        if request.method != "GET" or route is None or route.kind != "blob":
            return problem_response(oci_errors.not_found(request.raw_path), name)
        if stopping:
            return problem_response(_STOPPING, name)
        try:
            return await self._answer(request, route, wanted, name)
        except (MirrorError, RangeNotSatisfiable) as error:
            is_here = isinstance(error, StorageError)
            return problem_response(_STOPPING if is_here else oci_errors.not_found(request.raw_path), name)

    async def _answer(self, request: web.BaseRequest, route: Route, wanted: str, name: str) -> web.StreamResponse:
        assert route.repository is not None
        assert isinstance(route.reference, Digest)
        only_arrived = bool(route.parameter("arrived"))
        if not only_arrived and self._node.source.reads_from(route.reference, request.headers.get(NODE_HEADER, "")):
            # Each would wait for the other.
            return problem_response(oci_errors.not_found(request.raw_path), name)
        body = self._blobs.open_for_node(route.repository, route.reference, _urgency(route.parameter("urgency")))
        if body is None:
            return problem_response(oci_errors.not_found(request.raw_path), name)
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(body.close)
            news = route.parameter(NEWS_PARAMETER)
            if news is not None:
                return await self._news(request, body, news, name)
            try:
                async with while_connected(request, min(self._wait_s, _ARRIVED_WAIT_S) if only_arrived else self._wait_s):
                    size = await body.sized()
                    part = _part(wanted, size)
                    if only_arrived:
                        part = _arrived(part, body)
                    await body.ready(part.start, part.stop)
            except TimeoutError:
                return problem_response(_WAITING, name)
            except _NotArrived as found:
                return problem_response(found.problem, name)
            source = self._node.source
            hops = self._node.peers.hops(route.reference) if source.follows(route.reference) else 0
            response = ReadyResponse(_rendered(part, size, hops), name)
            await response.prepare(request)
            await self._send(request, response, body, part)
            return response

    async def _news(self, request: web.BaseRequest, body: HeldBody | StreamingBody, text: str, name: str) -> web.StreamResponse:
        """Answer with the ranges that have arrived, once one begins where the other node knows of none, or after a moment."""
        known = trailing.parsed_starts(text)
        ranges: Ranges = []
        with contextlib.suppress(TimeoutError):
            async with while_connected(request, self._wait_s):
                size = await body.sized()
                pause = max(_NEWS_INTERVAL_S, size * _NEWS_INTERVAL_S_PER_BYTE)
                # Not woken by each block: that would take a look for each.
                while not trailing.is_news(ranges := body.ranges(), known, size):  # noqa: ASYNC110
                    await asyncio.sleep(pause)
        headers = {"Content-Length": "0", ARRIVED_HEADER: trailing.rendered(ranges)}
        response = ReadyResponse(Rendered(200, head(200, headers), b""), name)
        await response.prepare(request)
        return response

    async def _send(self, request: web.BaseRequest, response: ReadyResponse, body: Body, part: ByteRange) -> None:
        """Send the body as far as it is available; then it ends short, and the other node turns elsewhere."""
        try:
            async with while_connected(request):
                await send_spans(request, response, body, part.start, part.stop)
        except Exception as error:  # noqa: BLE001 - an error response would be taken for a part of the body
            response.force_close()
            response.is_short, response.cause = True, str(error) or type(error).__name__
            # A node that has enough closes its connection.
            level = "debug" if isinstance(error, ConnectionError) else "info"
            self._log.log(level, "node_served_short", level, sent=response.sent, cause=response.cause)


def _part(wanted: str, size: int) -> ByteRange:
    """The range of a request; the whole blob without one. Raises RangeNotSatisfiable."""
    found = parse_range(wanted or None, size) if size else Full()
    return ByteRange(0, size) if isinstance(found, Full) else found[0]


def _arrived(part: ByteRange, body: HeldBody | StreamingBody) -> ByteRange:
    """The beginning of a range, as far as it has arrived. Raises _NotArrived."""
    start, stop = body.arrived(part.start) or (None, part.stop)
    if start != part.start:
        raise _NotArrived(start)
    return ByteRange(part.start, min(stop, part.stop))


def _rendered(part: ByteRange, size: int, hops: int) -> Rendered:
    length = str(part.stop - part.start)
    headers = {"Content-Type": "application/octet-stream", "Content-Length": length, HOP_HEADER: str(hops)}
    if not size:
        return Rendered(200, head(200, headers), b"")
    return Rendered(206, head(206, {**headers, "Content-Range": content_range(part, size)}), b"")


def _urgency(text: str | None) -> Urgency:
    return Urgency.__members__.get(text or "", Urgency.CLIENT)
