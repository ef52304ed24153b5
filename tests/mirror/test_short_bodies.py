"""Bodies that cannot be completed: they end short, with nothing else in them, and what went out is counted."""

import asyncio
import os

import pytest

from mirror.download.reader import HeldBody
from tests.mirror.transfers import Transfer
from tests.support.names import MIB
from tests.support.waiting import LIMIT, eventually
from tests.support.wire import Wire

# More than the buffers of two sockets take.
SIZE = 32 * MIB


@pytest.fixture
async def blob(hub, mirror):
    """One that is held."""
    blob = Transfer(hub, mirror, SIZE)
    await blob.get()
    assert await blob.held()
    return blob


async def begun(wire, blob):
    """Ask for it, and read no more than the headers of the answer."""
    await wire.send(f"GET {blob.path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    async with asyncio.timeout(LIMIT):
        return await wire.reader.readuntil(b"\r\n\r\n")


async def ended(log):
    """The line in the log about the body that ended short."""
    (event,) = await eventually(lambda: [event for event in log if event["event"] == "body_ended_short"])
    return event


async def test_client_that_leaves_has_had_something(blob, mirror, log):
    """What a client was sent before it left is in the log and in the metric."""
    before = await mirror.metric("served_bytes_total", outcome="HIT")
    async with Wire(mirror.port) as wire:
        await begun(wire, blob)
        async with asyncio.timeout(LIMIT):
            await wire.reader.readexactly(MIB)
        wire.writer.transport.abort()
    sent = (await ended(log))["sent"]
    assert MIB <= sent < SIZE
    assert await mirror.metric("served_bytes_total", outcome="HIT") == before + sent


async def test_range_that_is_left(blob, mirror, log):
    """It counts from where it began."""
    async with mirror.session.get(mirror.url(blob.path), headers={"Range": f"bytes={SIZE // 2}-"}) as response:
        await response.content.readexactly(100)
        response.close()
    assert 100 <= (await ended(log))["sent"] < SIZE // 2


async def test_file_that_shrinks_while_it_is_sent(blob, mirror, log):
    """The client's body ends short, instead of being waited for."""
    async with Wire(mirror.port) as wire:
        await begun(wire, blob)
        os.truncate(mirror.blob_path(blob.digest), 0)
        assert len(await wire.ended()) < SIZE
    assert "shorter" in (await ended(log))["cause"]


async def test_mistake_in_the_middle_of_a_body(blob, mirror, log, monkeypatch):
    """A mistake of ours ends the body like anything else: an error answer would be taken for its next bytes."""
    spans = HeldBody.spans

    async def mistaken(self, start, stop):
        async for span in spans(self, start, start + 1000):
            yield span
        raise ValueError("a mistake")

    monkeypatch.setattr(HeldBody, "spans", mistaken)
    async with Wire(mirror.port) as wire:
        await begun(wire, blob)
        assert await wire.ended() == blob.data[:1000]
    assert (await ended(log))["log_level"] == "error"
