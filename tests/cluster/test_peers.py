"""Streams from other nodes that hang, trickle or make this one wait: each ends, so that the bytes come from elsewhere."""

import asyncio
import contextlib
import time

import pytest

from mirror.cluster import peers as peers_module
from mirror.cluster.peer_protocol import PeerWaiting
from mirror.cluster.peers import Peers
from mirror.cluster.secret import ClusterSecret
from mirror.core.counts import CountTable
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.download.source import BlobRange
from mirror.errors import UpstreamTimeout, UpstreamUnreachable
from mirror.upstream import blob as upstream_blob
from mirror.upstream.connections import Connections
from mirror.upstream.http import Http, Limits
from tests.support.waiting import LIMIT

SIZE = 1 << 20
WANTED = BlobRange(Repository.parse("docker.io", "library/app"), Digest.of(b"x"), 0, None)
WAIT = b"HTTP/1.1 503 Service Unavailable\r\nX-Mirror-Wait: 1\r\nContent-Length: 0\r\n\r\n"


def part(start, body=b""):
    """The head of an answer with the rest of the blob, and the beginning of its body."""
    head = f"Content-Range: bytes {start}-{SIZE - 1}/{SIZE}\r\nContent-Length: {SIZE - start}\r\n\r\n"
    return b"HTTP/1.1 206 Partial Content\r\n" + head.encode() + body


@contextlib.asynccontextmanager
async def node(answer, stall=0.2):
    """A node that answers a request from a position on by `answer(position)`, and then hangs; and a client of it."""

    async def serve(reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                asked.append(int(head.partition("Range: bytes=")[2].partition("-")[0]))
                writer.write(answer(asked[-1]))
        writer.close()

    asked, table = [], CountTable.private()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    connections = Connections(table)
    http = Http(Limits(connect=LIMIT, headers=LIMIT, stall=stall), "test", connections)
    await http.start()
    try:
        peers = Peers(http, connections.intake, ClusterSecret(None, (b"s" * 32,)), lambda _: None)
        yield peers, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
    finally:
        await http.close()
        server.close()


async def received(peers, name):
    """The bytes that come of the blob, and the exception that ends them."""
    count = 0
    try:
        async with asyncio.timeout(LIMIT), peers.stream(name, WANTED, LIMIT) as stream:
            async for block in stream.blocks():
                count += len(block)
    except UpstreamTimeout as error:
        return count, str(error)
    return count, ""


async def test_node_that_hangs_after_its_head_is_asked_once_more_at_most():
    async with node(lambda position: part(position, b"hello" if position == 0 else b"")) as (peers, name, asked):
        count, error = await received(peers, name)
        assert (count, asked) == (5, [0, 5])
        assert error


async def test_node_that_sends_a_byte_each_time_is_too_slow(monkeypatch):
    """It makes progress at every request, but would hold a client without end."""
    monkeypatch.setattr(upstream_blob, "_WINDOW_S", 1.0)
    async with node(lambda position: part(position, b"x"), stall=0.05) as (peers, name, asked):
        count, error = await received(peers, name)
        assert 1 < count <= len(asked)
        assert "bytes in" in error


async def test_manifest_that_trickles_is_fetched_elsewhere(monkeypatch):
    monkeypatch.setattr(peers_module, "_MANIFEST_TIMEOUT_S", 0.2)
    async with node(lambda position: part(position, b"x"), stall=LIMIT) as (peers, name, _), asyncio.timeout(LIMIT / 2):
        assert await peers.manifest(name, WANTED) is None


async def test_node_that_makes_wait_is_left_in_time():
    async with node(lambda _: WAIT) as (peers, name, asked):
        with pytest.raises(PeerWaiting):
            async with asyncio.timeout(LIMIT), peers.stream(name, WANTED, 0.2):
                pass
        assert len(asked) > 1


def says(head, body=b""):
    """An answer with some headers."""
    return f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


@pytest.mark.parametrize(
    ("answer", "ranges"),
    [
        (says("200 OK\r\nX-Mirror-Arrived: 0-5,1048576-1048580"), [(0, 5), (1 << 20, (1 << 20) + 4)]),
        (says("200 OK\r\nX-Mirror-Arrived: "), None),
        (says("200 OK\r\nX-Mirror-Arrived: 5-0"), None),
        (says("206 Partial Content\r\nContent-Range: bytes 0-0/1048576", b"x"), None),
        (says("404 Not Found\r\nX-Mirror-First: 17"), None),
        (says("503 Service Unavailable"), None),
        (b"nonsense\r\n\r\n", None),
    ],
    ids=["two", "none", "garbage", "older version", "older version without the first byte", "stopping", "no answer of HTTP"],
)
async def test_ranges_of_a_node(answer, ranges):
    """A node that does not say them is treated like one of an older version, and asked for bytes all the same."""
    async with node(lambda _: answer) as (peers, name, asked):
        assert await peers.ranges(name, WANTED, [0]) == ranges
        assert asked == [0]
        assert not peers.avoids(name)


async def test_lost_node():
    """A node that could not be reached is lost for longer than it is avoided, until it answers again."""
    async with node(lambda _: says("206 Partial Content\r\nContent-Range: bytes 0-0/1048576", b"x")) as (peers, name, _):
        dead = "http://127.0.0.1:1"
        now = time.monotonic()
        with pytest.raises(UpstreamUnreachable):
            async with peers.blob(dead, WANTED):
                pass
        assert (peers.avoids(dead), peers.is_lost(dead), peers.is_lost(name)) == (True, True, False)
        peers.clock = lambda: now + 60
        assert (peers.avoids(dead), peers.is_lost(dead)) == (False, True)
        peers._lost.put(name, True)
        async with peers.blob(name, WANTED):
            pass
        assert not peers.is_lost(name)


async def test_ranges_of_a_dead_node():
    """They are not known. Whether the node is left is decided by the streams from it."""
    async with node(lambda _: WAIT) as (peers, _, _):
        assert await peers.ranges("http://127.0.0.1:1", WANTED, [0]) is None
        assert not peers.avoids("http://127.0.0.1:1")
