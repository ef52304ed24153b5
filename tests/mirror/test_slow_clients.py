"""Clients that take their time, and clients that leave."""

import asyncio
import contextlib
import socket

import pytest

from tests.fakehub import NoHeaders, Rule
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP
from tests.support.waiting import LIMIT, eventually
from tests.support.wire import Wire, ask, request

PING = request("/v2/")


async def test_slow_headers(hub, tmp_path, monkeypatch):
    """A request whose headers do not arrive in time ends with its connection, be it the first or a later one."""
    monkeypatch.setattr("mirror.listener.server._HEADERS_TIMEOUT_S", 0.3)
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        for start in (b"", b"GET /v2/ HTTP/1.1\r\nHost:"):
            async with Wire(mirror.port) as wire:
                await wire.send(start)
                assert await wire.ended() == b""
            async with Wire(mirror.port) as wire:
                await wire.send(b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n")
                assert (await wire.reply()).status == 200
                await wire.send(start)
                assert await wire.ended() == b""


async def test_trickled_headers(hub, tmp_path, monkeypatch):
    """Headers that come byte by byte do not put off the end."""
    monkeypatch.setattr("mirror.listener.server._HEADERS_TIMEOUT_S", 0.3)
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror, Wire(mirror.port) as wire:

        async def trickle():
            for _ in range(500):
                await wire.send(b"X")
                await asyncio.sleep(0.02)

        await wire.send(b"GET /v2/ HTTP/1.1\r\n")
        trickling = asyncio.create_task(trickle())
        with contextlib.suppress(ConnectionResetError):
            assert await wire.ended() == b""
        trickling.cancel()
        await asyncio.gather(trickling, return_exceptions=True)


async def test_long_answer_outlives_the_header_limit(hub, tmp_path, monkeypatch):
    """The time limit is for a request's headers: an answer that takes longer is not cut."""
    monkeypatch.setattr("mirror.listener.server._HEADERS_TIMEOUT_S", 0.2)
    image = hub.add_image(APP, "1")
    held = NoHeaders()
    hub.script(Rule(kind="manifest"), held)
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror, Wire(mirror.port) as wire:
        await wire.send(f"GET /v2/{APP}/manifests/1 HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await asyncio.wait_for(held.reached.wait(), LIMIT)
        await asyncio.sleep(0.5)
        held.release()
        assert (await wire.reply()).body == image.raw


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("kind", ["manifests", "blobs"])
async def test_client_leaves_before_the_answer(hub, mirror, quiet, kind, method):
    """A client that has left by the time of its answer is no event for the log."""
    image = hub.add_image(APP, "1")
    reference = "1" if kind == "manifests" else image.layers[0].digest
    held = NoHeaders()
    hub.script(Rule(kind=kind.removesuffix("s"), host="registry"), held)
    async with Wire(mirror.port) as wire:
        await wire.send(request(f"/v2/{APP}/{kind}/{reference}", method=method))
        await asyncio.wait_for(held.reached.wait(), LIMIT)
    # By the time of this answer the mirror has seen the other connection's end.
    assert (await ask(mirror.port, PING)).status == 200
    held.release()
    await eventually(lambda: not mirror.in_progress)
    await mirror.idle()
    quiet()
    assert (await ask(mirror.port, PING)).status == 200


async def test_burst_of_connections(mirror):
    """Clients that come all at once wait in line: the kernel takes their connections while the mirror is busy."""
    with contextlib.ExitStack() as stack:
        # The event loop stands still here, so that nothing is accepted.
        for _ in range(500):
            stack.enter_context(socket.create_connection(("127.0.0.1", mirror.port), timeout=LIMIT))
        assert (await ask(mirror.port, PING)).status == 200
