"""Bodies break, stall and lie exactly where they are told to."""

import asyncio

import aiohttp
import pytest

from tests.support.waiting import LIMIT

from . import (
    Chunked,
    Corrupt,
    Cut,
    FakeHub,
    Fault,
    Html,
    HugeBody,
    Reset,
    Rule,
    Slow,
    Stall,
    UntilClose,
    WrongLength,
)
from .clients import BLOB, DATA, REPOSITORY, BlobClient, blob_client
from .plugin import hub

__all__ = ["blob_client", "hub"]


async def collect(answer: aiohttp.ClientResponse, arrived: bytearray) -> None:
    async for piece in answer.content.iter_any():
        arrived += piece


@pytest.mark.parametrize(
    ("fault", "received", "error"),
    [
        (Cut(after=100_000), 100_000, aiohttp.ClientPayloadError),
        (Cut(after=0), 0, aiohttp.ClientPayloadError),
        (WrongLength(+7), len(DATA), aiohttp.ClientPayloadError),
        (Reset(after=100_000), 100_000, (aiohttp.ClientPayloadError, ConnectionResetError)),
    ],
)
async def test_bodies_that_break_off(
    hub: FakeHub, blob_client: BlobClient, fault: Fault, received: int, error: type[Exception]
) -> None:
    """A body ends after exactly so many bytes, and the client can tell that it is short."""
    hub.script(BLOB, fault)
    arrived = bytearray()
    async with blob_client.ask() as answer:
        with pytest.raises(error):
            await collect(answer, arrived)
    assert arrived == DATA[:received]
    assert hub.bytes_sent(blob_client.digest) - hub.find(host="registry")[0].body_bytes_sent == received


async def test_cut_is_a_fin_and_reset_is_a_reset(hub: FakeHub, blob_client: BlobClient) -> None:
    """On the wire a cut is an orderly end, a reset is not; both come after all bytes promised."""
    hub.redirect_blobs = False
    hub.script(Rule(kind="blob"), Cut(after=10))
    hub.script(Rule(kind="blob"), Reset(after=10))
    host, port = hub.registry_host.split(":")
    ask = f"GET /v2/{REPOSITORY}/blobs/{blob_client.digest} HTTP/1.1\r\nHost: a\r\n\r\n".encode()
    for reset in (False, True):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(ask)
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(10) == DATA[:10]
        if reset:
            with pytest.raises(ConnectionResetError):
                await reader.read()
        else:
            assert await reader.read() == b""
        writer.close()


async def test_gates_hold_the_body_exactly(hub: FakeHub, blob_client: BlobClient) -> None:
    """A gate lets through so many bytes, then more step by step."""
    gate = hub.gate(BLOB, after=10)
    async with asyncio.timeout(LIMIT), blob_client.ask() as answer:
        await gate.reached.wait()
        assert await answer.content.readexactly(10) == DATA[:10]
        assert hub.find(host="cdn")[0].body_bytes_sent == 10
        gate.advance(to=70_000)
        await gate.reached.wait()
        assert await answer.content.readexactly(69_990) == DATA[10:70_000]
        assert (gate.waiting, hub.active) == (1, 1)
        gate.release()
        assert await answer.read() == DATA[70_000:]
    assert hub.find(host="cdn")[0].finished


async def test_two_gates_hold_one_body(hub: FakeHub, blob_client: BlobClient) -> None:
    """Two gates stop one body at both places."""
    first, second = hub.gate(Rule(kind="cdn"), after=0), hub.gate(Rule(kind="cdn"), after=5)
    async with asyncio.timeout(LIMIT), blob_client.ask() as answer:
        await first.reached.wait()
        assert not second.reached.is_set()
        first.release()
        await second.reached.wait()
        second.release()
        assert await answer.read() == DATA


async def test_stalls_end_with_the_client_or_the_hub(hub: FakeHub, blob_client: BlobClient) -> None:
    """A stalled body is dropped when its client leaves, and when the hub stops."""
    stall = Stall(after=5)
    hub.script(BLOB, stall)
    async with asyncio.timeout(LIMIT):
        async with blob_client.ask() as answer:
            await stall.reached.wait()
            assert await answer.content.readexactly(5) == DATA[:5]
            answer.close()
        while hub.active:
            await asyncio.sleep(0)
        assert not hub.find(host="cdn")[0].finished
        async with blob_client.ask() as answer:
            await hub.stop()
            with pytest.raises((aiohttp.ClientPayloadError, ConnectionResetError)):
                await answer.read()


async def test_wrong_bytes(hub: FakeHub, blob_client: BlobClient) -> None:
    """One byte is another, or all are; the length is right."""
    hub.script(Rule(kind="blob"), Corrupt(at=1000))
    hub.script(Rule(kind="blob"), HugeBody(300_000))
    hub.script(Rule(kind="blob", host="cdn"), Html())
    got = await blob_client.read()
    assert [at for at in range(len(DATA)) if got[at] != DATA[at]] == [1000]
    assert await blob_client.read() == bytes(300_000)
    async with blob_client.ask() as answer:
        assert (answer.status, answer.content_type) == (200, "text/html")


async def test_bodies_without_length(hub: FakeHub, blob_client: BlobClient) -> None:
    """Chunks and the end of the connection end a body as well, early or never."""
    for fault, got in (
        (Chunked(), DATA),
        (Chunked(after=10), DATA[:10]),
        (UntilClose(), DATA),
        (UntilClose(after=10), DATA[:10]),
    ):
        hub.script(Rule(kind="blob"), fault)
        async with blob_client.ask() as answer:
            assert answer.content_length is None
            assert await answer.read() == got
    hub.script(Rule(kind="blob"), Chunked(endless=True))
    async with blob_client.ask() as answer:
        assert await answer.content.readexactly(3 * len(DATA)) == 3 * DATA
        answer.close()


async def test_rates(hub: FakeHub, blob_client: BlobClient) -> None:
    """Rates are per body, per connection, and shared by all."""
    loop = asyncio.get_running_loop()
    rate = len(DATA) / 0.2

    async def duration(bodies: int) -> float:
        start = loop.time()
        assert await asyncio.gather(*(blob_client.read() for _ in range(bodies))) == [DATA] * bodies
        return loop.time() - start

    hub.script(Rule(kind="blob", times=4), Slow(rate))
    assert 0.15 < await duration(4) < 0.7
    hub.connection_bandwidth = rate
    assert 0.15 < await duration(4) < 0.7
    hub.connection_bandwidth, hub.bandwidth = None, rate
    assert 0.75 < await duration(4) < 3


async def test_a_slow_reader_holds_the_body_back(hub: FakeHub, blob_client: BlobClient) -> None:
    """What a client does not read is not written: only what the kernel's buffers hold."""
    hub.script(Rule(kind="blob"), HugeBody(1 << 30))
    async with blob_client.ask() as idle:
        await hub.wait_for(host="cdn")
        large = hub.add_synthetic_blob(REPOSITORY, 50_000_000)
        async with blob_client.session.get(blob_client.url.replace(blob_client.digest, large.digest)) as busy:
            assert len(await busy.read()) == large.size
        assert 0 < hub.find(host="cdn")[0].body_bytes_sent < 25_000_000
        idle.close()


async def test_faults_leave_shorter_bodies_alone(hub: FakeHub, blob_client: BlobClient) -> None:
    """A fault beyond the end of a body waits for a longer one; faults given together build on each other."""
    hub.script(Rule(kind="blob"), Cut(after=10))
    assert await blob_client.read(Range="bytes=0-9") == DATA[:10]
    with pytest.raises(aiohttp.ClientPayloadError):
        await blob_client.read(Range="bytes=0-10")
    hub.script(Rule(kind="blob"), HugeBody(1 << 30), Cut(after=2 * len(DATA)))
    with pytest.raises(aiohttp.ClientPayloadError):
        await blob_client.read()
    assert hub.find(host="cdn")[-1].body_bytes_sent == 2 * len(DATA)


async def test_large_blobs_need_no_memory(hub: FakeHub, blob_client: BlobClient) -> None:
    """A synthetic blob has the digest it was announced with, also in parts."""
    large = hub.add_synthetic_blob(REPOSITORY, 5_000_000, seed=7)
    assert large.digest == hub.add_blob(REPOSITORY, large.data)
    hub.add_synthetic_blob(REPOSITORY, 5_000_000, seed=7)
    blob_client.url = blob_client.url.replace(blob_client.digest, large.digest)
    assert await blob_client.read() == large.data
    assert await blob_client.read(Range="bytes=1048580-2097200") == large.data[1_048_580:2_097_201]
