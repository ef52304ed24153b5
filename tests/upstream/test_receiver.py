"""Bodies received below the HTTP client, from real sockets, plain and by TLS."""

import asyncio
import contextlib
import os
import ssl
import time

import aiohttp
import pytest

from mirror.core.byte_rate import BURST_S, ByteRate
from mirror.core.counts import CountTable
from mirror.errors import UpstreamTimeout
from mirror.upstream.intake import LARGEST, SMALLEST, BufferPool, Intake
from mirror.upstream.receiver import FIRST_BYTES, BodyEnded, open_body
from tests.support.certificates import Authority
from tests.support.waiting import LIMIT, SOON

LARGE = os.urandom(5_000_003)


class Peer:
    """A server that answers each request by `script`, a coroutine function of the writer.

    Attributes:
        connections: how many were made.
    """

    def __init__(self, script, tls=None):
        self.connections = 0
        self._script = script
        self._tls = tls

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()

    async def _serve(self, reader, writer):
        self.connections += 1
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                await self._script(writer)
                await writer.drain()
        writer.close()


def head(length):
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % length


def sends(*pieces):
    async def script(writer):
        for piece in pieces:
            if piece is None:
                writer.close()
                return
            writer.write(piece)

    return script


@pytest.fixture
async def session():
    async with aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=LIMIT)) as session:
        yield session


@pytest.fixture
def pool():
    return BufferPool()


def byte_rate(limit=0):
    rate = ByteRate(CountTable.private())
    rate.limit = limit
    return rate


async def opened(session, peer, pool, *, tls=None, stall=LIMIT, rate=None):
    response = await session.get(f"http{'s' if tls else ''}://localhost:{peer.port}/", ssl=tls or True)
    return open_body(response, Intake(pool, rate or byte_rate()), stall)


async def whole(session, peer, pool, **options):
    body = await opened(session, peer, pool, **options)
    found = bytearray()
    while step := await body.step():
        found += step
    body.close()
    return bytes(found)


@pytest.fixture(params=["plain", "tls"])
def transport(request, tmp_path):
    """TLS contexts of server and client, or None twice."""
    if request.param == "plain":
        return None, None
    authority = Authority(tmp_path)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(*authority.issue("localhost"))
    return server, ssl.create_default_context(cafile=str(authority.certificate))


async def test_whole_bodies_on_one_connection(session, pool, transport):
    """Every byte arrives in its place, and the connection is good for the next request."""
    server, client = transport
    async with Peer(sends(head(len(LARGE)), LARGE), server) as peer:
        for _ in range(3):
            assert await whole(session, peer, pool, tls=client) == LARGE
        assert peer.connections == 1
    assert pool.lent == 0


async def test_a_body_that_came_with_its_head(session, pool):
    """Nothing is left to receive; the client has taken all of it."""
    async with Peer(sends(head(5) + b"hello")) as peer:
        assert await whole(session, peer, pool) == b"hello"
        assert await whole(session, peer, pool) == b"hello"
        assert peer.connections == 1


async def test_a_body_that_is_cut(session, pool, transport):
    """What came before the end of the connection is handed out, then the end is told."""
    server, client = transport
    async with Peer(sends(head(len(LARGE)), LARGE[:300_000], None), server) as peer:
        body, found = await opened(session, peer, pool, tls=client), bytearray()

        async def read_on():
            while step := await body.step():
                found.extend(step)

        with pytest.raises(BodyEnded):
            await read_on()
        body.close()
    assert bytes(found) == LARGE[:300_000]
    assert pool.lent == 0


async def test_a_connection_that_ends_with_its_body(session, transport):
    """What has come before the end is not lost, however little fits into a buffer."""
    server, client = transport

    async def script(writer):
        writer.write(head(2_000_003).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n") + LARGE[:2_000_003])
        await writer.drain()
        # At once, without waiting for the other side's end of TLS.
        tls = getattr(writer.transport, "_ssl_protocol", None)
        (writer.transport if tls is None else tls._transport).close()

    pool = BufferPool(4 * SMALLEST)
    async with Peer(script, server) as peer:
        body, found = await opened(session, peer, pool, tls=client), bytearray()
        while step := await body.step():
            found += step
            await asyncio.sleep(0.01)
        body.close()
    assert bytes(found) == LARGE[:2_000_003]
    assert pool.lent == 0


async def test_bytes_are_passed_on_as_they_come(session, pool):
    """A slow upstream's bytes do not wait for a full step."""
    gates = [asyncio.Event() for _ in range(3)]

    async def script(writer):
        writer.write(head(4) + b"a")
        for gate, byte in zip(gates, b"bcd", strict=True):
            await gate.wait()
            writer.write(bytes([byte]))

    async with Peer(script) as peer:
        body = await opened(session, peer, pool)
        seen = [bytes(await body.step())]
        for gate in gates:
            gate.set()
            seen.append(bytes(await body.step()))
        assert seen == [b"a", b"b", b"c", b"d"]
        assert not await body.step()
        body.close()


async def test_bytes_behind_the_first_step(session, pool):
    """They are received when they are asked for, and passed on although nothing follows them."""
    opened_body, written, taken = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def script(writer):
        writer.write(head(9) + b"hello")
        await opened_body.wait()
        writer.write(b"you")
        written.set()
        await taken.wait()
        writer.write(b"!")

    async with Peer(script) as peer:
        body = await opened(session, peer, pool)
        opened_body.set()
        await written.wait()
        try:
            assert bytes(await body.step()) == b"hello"
            for _ in range(50):
                await asyncio.sleep(0)
            assert not pool.lent
            async with asyncio.timeout(SOON):
                assert bytes(await body.step()) == b"you"
        finally:
            taken.set()
        assert bytes(await body.step()) == b"!"
        body.close()


async def test_the_first_step_of_a_body_behind_its_head(session, pool):
    """It is small, and leaves the event loop to whoever waits for it, before large steps follow."""
    head_read = asyncio.Event()

    async def script(writer):
        writer.write(head(len(LARGE)))
        await head_read.wait()
        writer.write(LARGE)

    async with Peer(script) as peer:
        body = await opened(session, peer, pool)
        head_read.set()
        found = bytearray(await body.step())
        assert len(found) <= FIRST_BYTES
        for _ in range(50):
            await asyncio.sleep(0)
        assert pool.lent <= FIRST_BYTES
        while step := await body.step():
            found += step
        body.close()
    assert bytes(found) == LARGE
    assert pool.lent == 0


async def test_silence(session, pool):
    """A body of which nothing comes for the stall time is given up."""
    silent = asyncio.Event()

    async def script(writer):
        writer.write(head(4) + b"a")
        await silent.wait()

    async with Peer(script) as peer:
        body = await opened(session, peer, pool, stall=0.05)
        assert bytes(await body.step()) == b"a"
        with pytest.raises(UpstreamTimeout, match="nothing for"):
            await body.step()
        body.close()
        silent.set()
    assert pool.lent == 0


async def test_bytes_that_came_while_the_event_loop_was_busy(session, pool):
    """A busy event loop is no silent upstream: what has come within the stall time is handed out, however late."""
    go_on, written = asyncio.Event(), asyncio.Event()

    async def script(writer):
        writer.write(head(5) + b"a")
        await go_on.wait()
        writer.write(b"bcd")
        written.set()

    async with Peer(script) as peer:
        body = await opened(session, peer, pool, stall=0.05)
        with contextlib.closing(body):
            assert bytes(await body.step()) == b"a"
            go_on.set()
            step = asyncio.create_task(body.step())
            await written.wait()
            # The only wait here that blocks: it stands for the work of others on the event loop.
            time.sleep(0.1)
            assert bytes(await step) == b"bcd"
    assert pool.lent == 0


async def test_a_body_of_unknown_length(session, pool):
    """Chunks are for the client to understand."""
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in (b"one", b"two", LARGE)) + b"0\r\n\r\n"
    async with Peer(sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)) as peer:
        assert await whole(session, peer, pool) == b"onetwo" + LARGE
        assert await whole(session, peer, pool) == b"onetwo" + LARGE
        assert peer.connections == 1


async def test_a_body_of_unknown_length_that_is_cut(session, pool):
    """That is told like any other end: who reads past the store goes on from there."""
    async with Peer(sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n", None)) as peer:
        response = await session.get(f"http://localhost:{peer.port}/")
        body = open_body(response, Intake(pool, byte_rate()), LIMIT)
        assert bytes(await body.step()) == b"one"
        with pytest.raises(BodyEnded):
            await body.step()
        body.close()
        response.close()


async def test_a_taker_that_is_slow(session, pool):
    """Not more than two buffers are filled ahead of who takes the bytes, however fast upstream is."""
    async with Peer(sends(head(len(LARGE)), LARGE)) as peer:
        body, found = await opened(session, peer, pool), bytearray()
        while step := await body.step():
            for _ in range(20):
                await asyncio.sleep(0)
            assert pool.lent <= 2 * LARGEST
            found += step
        body.close()
    assert bytes(found) == LARGE


async def test_a_body_keeps_to_the_rate(session, pool, transport):
    """It takes as long as the rate says, and every byte arrives in its place."""
    server, client = transport
    loop, rate, wanted = asyncio.get_running_loop(), byte_rate(4_000_000), LARGE[:1_500_000]
    async with Peer(sends(head(len(wanted)), wanted), server) as peer:
        for _ in range(2):
            began = loop.time()
            assert await whole(session, peer, pool, tls=client, rate=rate) == wanted
            assert loop.time() - began > len(wanted) / rate.limit - BURST_S - rate.quantum / rate.limit
        assert peer.connections == 1
    assert pool.lent == 0


async def test_a_body_of_unknown_length_keeps_to_the_rate(session, pool):
    """The client's own way of receiving is slowed down, too."""
    loop, rate, wanted = asyncio.get_running_loop(), byte_rate(4_000_000), LARGE[:1_500_000]
    chunks = b"".join(b"%x\r\n%b\r\n" % (100_000, wanted[at : at + 100_000]) for at in range(0, len(wanted), 100_000))
    async with Peer(sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n")) as peer:
        began = loop.time()
        assert await whole(session, peer, pool, rate=rate) == wanted
        assert loop.time() - began > (len(wanted) - 200_000) / rate.limit - BURST_S


async def test_nothing_is_received_while_the_rate_is_used_up(session, pool):
    """What is not received yet waits in upstream's own buffers."""
    rate, gate = byte_rate(256 << 10), asyncio.Event()

    async def script(writer):
        writer.write(head(len(LARGE)) + LARGE[:1])
        await gate.wait()
        writer.write(LARGE[1:])

    async with Peer(script) as peer:
        body = await opened(session, peer, pool, rate=rate)
        assert len(await body.step()) == 1
        # As if others had received for a minute in advance.
        rate.spend(60 * rate.limit, asyncio.get_running_loop().time())
        gate.set()
        async with asyncio.timeout(LIMIT):
            received = len(await body.step())
        more = asyncio.create_task(body.step())
        for _ in range(50):
            await asyncio.sleep(0)
        assert not more.done()
        more.cancel()
        body.close()
    assert 0 < received <= rate.quantum
    assert pool.lent == 0


async def test_waiting_for_the_rate_is_no_silence(session, pool):
    """Upstream is not blamed for what the mirror does not receive."""
    rate, stall = byte_rate(256 << 10), 0.1
    async with Peer(sends(head(40_000), LARGE[:40_000])) as peer:
        body = await opened(session, peer, pool, rate=rate, stall=stall)
        rate.spend(int(3 * stall * rate.limit), asyncio.get_running_loop().time())
        found = bytearray()
        while step := await body.step():
            found += step
        body.close()
    assert bytes(found) == LARGE[:40_000]


async def test_a_late_reader_of_the_response_before(session, pool, caplog):
    """Who reads an earlier, buffered body of the same connection does not set a receiver that has paused going again."""
    answers = iter([b"small", LARGE])

    async def script(writer):
        body = next(answers)
        writer.write(head(len(body)) + body)

    async with Peer(script) as peer:
        url = f"http://localhost:{peer.port}/"
        earlier = await session.get(url)
        body = await opened(session, peer, pool)
        found = bytearray(await body.step())
        found += await body.step()
        async with asyncio.timeout(LIMIT):
            while pool.lent < LARGEST or body._paused is False:
                await asyncio.sleep(0)
        assert await earlier.read() == b"small"
        for _ in range(50):
            await asyncio.sleep(0)
        while step := await body.step():
            found += step
        body.close()
        assert peer.connections == 1
    assert bytes(found) == LARGE
    assert not caplog.records


async def test_leaving_early_closes_the_connection(session, pool, transport):
    """A body that is not read to its end cannot be followed by another one."""
    server, client = transport
    async with Peer(sends(head(len(LARGE)), LARGE), server) as peer:
        body = await opened(session, peer, pool, tls=client)
        await body.step()
        body.close()
        assert pool.lent == 0
        assert await whole(session, peer, pool, tls=client) == LARGE
        assert peer.connections == 2


async def test_leaving_before_the_last_step(session, pool, transport):
    """A connection is not left open because all of its body has come but has not been taken."""
    server, client = transport
    gates = asyncio.Event(), asyncio.Event()

    async def script(writer):
        writer.write(head(30_000) + b"x" * 10_000)
        for gate in gates:
            await gate.wait()
            writer.write(b"x" * 10_000)

    async with Peer(script, server) as peer:
        body = await opened(session, peer, pool, tls=client)
        await body.step()
        gates[0].set()
        await body.step()
        gates[1].set()
        async with asyncio.timeout(LIMIT):
            while body._left:
                await asyncio.sleep(0)
        kept = body._transport
        body.close()
        assert kept.is_closing()
    assert pool.lent == 0


async def test_a_step_outlives_its_body(session, pool):
    """What a thread still reads from is not lent to anybody else."""
    async with Peer(sends(head(len(LARGE)), LARGE)) as peer:
        body = await opened(session, peer, pool)
        step = await body.step()
        before = bytes(step)
        body.close()
        assert await whole(session, peer, pool) == LARGE
        assert bytes(step) == before


async def test_more_than_was_announced(session, pool, caplog, transport):
    """What comes after the end is no body, and its connection is used for nothing else."""
    server, client = transport
    async with Peer(sends(head(len(LARGE)), LARGE + b"x" * 1000), server) as peer:
        assert await whole(session, peer, pool, tls=client) == LARGE
        assert await whole(session, peer, pool, tls=client) == LARGE
        assert peer.connections == 2
    assert pool.lent == 0
    assert not caplog.records


async def test_last_step_of_a_body_that_was_read(session, pool):
    """The buffer of the last step is lent again if its reader says that it is done with it."""
    async with Peer(sends(head(len(LARGE)), LARGE)) as peer:
        for _ in range(3):
            body = await opened(session, peer, pool)
            while body._left:
                await body.step()
            handed = body._handed
            assert handed is not None
            body.close(is_used=False)
            assert pool.lent == 0
            assert pool.lend(len(handed), len(handed)) is handed
            pool.give_back(handed)


async def test_buffer_of_a_short_body(session, pool, monkeypatch):
    """The buffer for the rest of a body is not larger than that needs: a new one costs as much as it is large."""
    sizes, lend = [], BufferPool.lend

    def recorded(self, *args):
        sizes.append(len(buffer := lend(self, *args)))
        return buffer

    monkeypatch.setattr(BufferPool, "lend", recorded)
    begun = asyncio.Event()

    async def script(writer):
        writer.write(head(100_000) + LARGE[:10])
        await begun.wait()
        writer.write(LARGE[10:100_000])

    async with Peer(script) as peer:
        body = await opened(session, peer, pool)
        found = bytes(await body.step())
        begun.set()
        while step := await body.step():
            found += step
        body.close()
    assert found == LARGE[:100_000]
    assert sizes == [128 << 10]


def test_buffers_are_large_while_few_are_lent():
    """Who comes first gets a large buffer, and so does the next."""
    pool = BufferPool()
    assert [len(pool.lend()) for _ in range(3)] == [LARGEST] * 3


def test_the_pool_is_bounded():
    """However many are lent, the bytes stay within the total, but for the smallest ones."""
    pool = BufferPool(8 << 20)
    sizes = [len(pool.lend()) for _ in range(600)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] == SMALLEST
    assert sum(sizes) == pool.lent
    assert sum(size for size in sizes if size > SMALLEST) <= 8 << 20


def test_buffers_are_used_again():
    """What comes back is lent again."""
    pool = BufferPool(8 << 20)
    buffer = pool.lend()
    pool.give_back(buffer)
    assert pool.lent == 0
    assert pool.lend() is buffer


def test_what_is_kept_makes_room():
    """Kept buffers of another size do not add to the total for ever."""
    pool = BufferPool(4 * SMALLEST)
    buffers = [pool.lend() for _ in range(4)]
    for buffer in buffers:
        pool.give_back(buffer)
    assert pool.lent == 0
    assert sum(map(len, (pool.lend() for _ in range(4)))) <= 4 * SMALLEST
