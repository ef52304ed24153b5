"""The protocol between nodes: headers beside those of the OCI distribution API, and what a node answers instead of bytes."""

from __future__ import annotations

import aiohttp

from mirror.errors import UpstreamError, UpstreamProtocolError
from mirror.upstream.http import drain

WAIT_HEADER = "X-Mirror-Wait"
"""In a 503 of a node that has nothing to send yet, but expects it."""
FIRST_HEADER = "X-Mirror-First"
"""In a 404 of a node that was asked for what has arrived: the position of the first such byte behind the start of the range."""
ARRIVED_HEADER = "X-Mirror-Arrived"
"""In an answer to who asked for news: the ranges that have arrived; see `mirror.core.trailing.rendered`."""
NEWS_PARAMETER = "news"
"""In a request for what has arrived: the node waits a moment for a range that begins at none of these positions; see
`mirror.core.trailing.rendered_starts`."""

HOP_HEADER = "X-Mirror-Hop"
"""In an answer: how many nodes are between the one that answers and upstream."""
NODE_HEADER = "X-Mirror-Node"
"""In a request: the name of the node that asks."""


class PeerAbsent(UpstreamError):
    """The node neither holds nor receives the blob, or the byte that was asked for has not arrived.

    Attributes:
        first: the position of the first byte that has; None if none has.
    """

    reason = "absent"
    first: int | None = None


class PeerWaiting(UpstreamError):
    """The node has no byte of it yet, but expects some."""

    reason = "waiting"


class PeerRefused(UpstreamError):
    """The node does not accept the signature."""

    reason = "refused"


class PeerBusy(UpstreamError):
    """The node takes no more requests: it is stopping, cannot store the blob, or has too many."""

    reason = "busy"


async def raise_for(response: aiohttp.ClientResponse) -> None:
    """Raise what an answer without bytes means; after its body."""
    host, status = response.url.host, response.status
    if status in (200, 206):
        return
    await drain(response)
    if status == 404:
        absent, first = PeerAbsent(f"node {host} does not have it"), response.headers.get(FIRST_HEADER, "")
        absent.first = int(first) if first.isdecimal() and first.isascii() else None
        raise absent
    if status == 401:
        raise PeerRefused(f"node {host} has another secret")
    if status == 503 and WAIT_HEADER in response.headers:
        raise PeerWaiting(f"node {host} has nothing of it yet")
    if status == 503:
        raise PeerBusy(f"node {host} takes no more requests")
    raise UpstreamProtocolError(f"node {host} answers {status}")
