"""The admin address is as bounded as the registry address, and decides before it reads."""

import asyncio
import contextlib
import json

import pytest

from tests.support.mirrors import MirrorUnderTest
from tests.support.waiting import LIMIT
from tests.support.wire import Wire, ask, request

KEPT = b"GET /healthz HTTP/1.1\r\nHost: mirror\r\n\r\n"
PURGE = '{"match": "app"}'


@pytest.fixture
async def secured(hub, tmp_path):
    """A mirror whose admin address wants a token."""
    (tmp_path / "token").write_text("s3cret\n")
    async with MirrorUnderTest(hub, tmp_path / "store", admin={"token_file": str(tmp_path / "token")}) as mirror:
        yield mirror


def order(headers, path="/api/v1/purge"):
    lines = [f"POST {path} HTTP/1.1", "Host: mirror", "Content-Type: application/json", *headers, "", ""]
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize("start", [b"", b"GET /healthz HTTP/1.1\r\nHost:"], ids=["silent", "half"])
async def test_headers_have_a_time_limit(hub, tmp_path, monkeypatch, start):
    """A connection that asks nothing, or never to the end, is ended, be it new or used."""
    monkeypatch.setattr("mirror.listener.server._HEADERS_TIMEOUT_S", 0.2)
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        async with Wire(mirror.admin_port) as wire:
            await wire.send(start)
            assert await wire.ended() == b""
        async with Wire(mirror.admin_port) as wire:
            await wire.send(KEPT)
            assert (await wire.reply()).body == b"ok\n"
            await wire.send(start)
            assert await wire.ended() == b""


async def test_connections_of_one_address(hub, tmp_path):
    """One address has no more connections than at the registry address, and is told so in the address's own form."""
    async with contextlib.AsyncExitStack() as stack:
        limits = {"connections_per_address": 3}
        mirror = await stack.enter_async_context(MirrorUnderTest(hub, tmp_path / "store", limits=limits))
        for _ in range(3):
            wire = await stack.enter_async_context(Wire(mirror.admin_port))
            await wire.send(KEPT)
            assert (await wire.reply()).status == 200
        reply = await ask(mirror.admin_port, request("/healthz"))
        assert reply.status == 429
        assert set(json.loads(reply.body)) == {"error"}
        assert reply.headers["retry-after"]
        # The other address has an account of its own.
        assert (await ask(mirror.port, request("/v2/"))).status == 200


async def test_requests_of_one_address(hub, tmp_path):
    """Bodies that do not come take up the places of their own address."""
    limits = {"requests_per_address": 1}
    async with MirrorUnderTest(hub, tmp_path / "store", limits=limits) as mirror, Wire(mirror.admin_port) as wire:
        await wire.send(order(["Content-Length: 20"]))
        async with asyncio.timeout(LIMIT):
            while (await ask(mirror.admin_port, request("/healthz"))).status != 429:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("path", ["/api/v1/purge", "/api/v1/sync", "/api/v1/warm"])
async def test_a_body_that_drips(mirror, monkeypatch, path):
    """A body that is not there in time is not waited for, however it trickles."""
    monkeypatch.setattr("mirror.admin.json_body._BODY_TIMEOUT_S", 0.3)

    async def drip(wire):
        for _ in range(1000):
            await wire.send(b" ")
            await asyncio.sleep(0.02)

    async with Wire(mirror.admin_port) as wire:
        await wire.send(order(["Content-Length: 1000"], path))
        dripping = asyncio.create_task(drip(wire))
        assert (await wire.reply()).status == 408
        dripping.cancel()
        await asyncio.gather(dripping, return_exceptions=True)


async def test_a_body_that_is_no_body(mirror, quiet):
    """A body whose encoding is broken is the sender's mistake."""
    async with Wire(mirror.admin_port) as wire:
        await wire.send(order(["Transfer-Encoding: chunked"]) + b"5\r\nhello\r\nnonsense\r\n")
        assert (await wire.reply()).status == 400
    quiet()


@pytest.mark.parametrize("headers", [["Content-Length: 60000"], ["Transfer-Encoding: chunked"]])
async def test_token_before_body(secured, headers):
    """Who has no token is told so before a byte of the body is there, and is not asked for it."""
    async with Wire(secured.admin_port) as wire:
        await wire.send(order(["Expect: 100-continue", *headers]))
        assert (await wire.reply()).status == 401


async def test_who_has_the_token_is_asked_for_the_body(secured):
    """With the token a client that waits to be asked is."""
    async with Wire(secured.admin_port) as wire:
        await wire.send(order([f"Content-Length: {len(PURGE)}", "Expect: 100-continue", "Authorization: Bearer s3cret"]))
        async with asyncio.timeout(LIMIT):
            assert await wire.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        await wire.send(PURGE.encode())
        assert (await wire.reply()).status == 200


BAD = {
    "text": b"hello world\r\n\r\n",
    "secret header": request("/healthz", "Authorization: Bearer hunter2\x00"),
    "long secret": request("/healthz", "Authorization: Bearer hunter2" + "a" * 20_000),
    "no colon": request("/healthz", "Authorization hunter2"),
    "webhook": b"POST /webhooks/dockerhub/hunter2 HTTP/9.9\r\nHost: x\r\n\r\n",
    "webhook with blank": b"POST /webhooks/dockerhub/hunter2 x HTTP/1.1\r\nHost: x\r\n\r\n",
    "webhook without end": b"POST /webhooks/dockerhub/hunter2" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "webhook without host": b"POST /webhooks/dockerhub/hunter2 HTTP/1.1\r\n\r\n",
    "webhook in a name": request("/v2/webhooks/dockerhub/hunter2/manifests/a%20b"),
    "webhook encoded": request("/webhooks%2Fdockerhub/hunter2"),
    "webhook behind a name": request("/v2/x/webhooks/dockerhub/hunter2", method="POST"),
    "webhook in the query": request("/v2/App/manifests/1?x=/webhooks/dockerhub/hunter2"),
    "two lengths": request("/webhooks/dockerhub/hunter2", "Content-Length: 5", "Content-Length: 6", method="POST"),
    "bad chunk": request("/webhooks/dockerhub/hunter2", "Transfer-Encoding: chunked", method="POST") + b"hunter2\r\n",
    "authority": b"CONNECT hunter2:80 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
}


@pytest.mark.parametrize("address", ["registry", "admin"])
@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
async def test_nothing_is_repeated(mirror, log, quiet, caplog, address, data):
    """What is no request, or carries a secret to a wrong place, is neither logged nor sent back, and makes no traceback."""
    port = mirror.port if address == "registry" else mirror.admin_port
    async with Wire(port) as wire:
        await wire.send(data)
        reply = await wire.ended()
    assert (reply[:7], reply[9:10]) == (b"HTTP/1.", b"4"), reply
    assert b"hunter2" not in reply
    assert "hunter2" not in f"{log} {caplog.text}"
    assert b"aiohttp" not in reply
    quiet()


@pytest.mark.parametrize("address", ["registry", "admin"])
async def test_a_flood_of_mistakes_is_a_few_lines(mirror, log, address):
    """However much nonsense comes, the log stays readable."""
    port = mirror.port if address == "registry" else mirror.admin_port
    for _ in range(40):
        await ask(port, b"hello world\r\n\r\n")
        await ask(port, request("/v2/UPPER/manifests/1"))
    for event in ("request_malformed", "request_refused"):
        assert len([line for line in log if line["event"] == event]) < 25
