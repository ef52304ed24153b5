"""Upstream breaks in the middle of a blob: clients notice nothing, or an early orderly end."""

import asyncio
import contextlib
import errno
import os

import aiohttp
import pytest

from tests.fakehub import BadContentRange, Corrupt, Cut, ExpiredUrl, IgnoreRange, Reset, Rule, Stall, Status
from tests.mirror.transfers import CDN, Transfer, raw, raw_body, raw_head
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import MIB
from tests.support.waiting import LIMIT

SIZE = 3 * MIB + 4321
BREAK = 2 * MIB + 99
HELD_BACK = 64 << 10


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Retries come at once."""
    monkeypatch.setattr("mirror.download.fetcher.backoff", lambda *_, **__: 0.0)


@pytest.fixture
def blob(hub, mirror):
    return Transfer(hub, mirror, SIZE)


# What the HTTP client had received, but not handed over yet when the connection broke, is lost.
BUFFERED = 256 << 10


def starts_near(header, place):
    """Whether a Range begins at a place, or a little before it."""
    return place - BUFFERED <= position(header) <= place


def position(header):
    return int(header.removeprefix("bytes=").partition("-")[0])


@pytest.mark.parametrize("fault", [Cut, Stall], ids=["cut", "stall"])
async def test_break_is_resumed_where_it_broke(hub, blob, mirror, fault):
    """Upstream ends early or falls silent; only the rest is asked for, and two clients notice nothing."""
    hub.script(Rule(host="cdn", method="GET"), fault(BREAK))
    if fault is Stall:
        mirror.set_limits(stall=1.0)
    answers = await asyncio.gather(blob.get(), blob.get())
    assert [answer.body for answer in answers] == [blob.data] * 2
    first, second = blob.asked()
    assert first is None
    assert starts_near(second, BREAK)
    assert sum(seen.body_bytes_sent for seen in blob.fetched()) <= SIZE + BUFFERED
    assert await blob.held()
    assert await mirror.metric("download_resumes_total") == 1


async def test_reset_is_resumed(hub, blob):
    """A reset may lose bytes on the wire; what has not arrived is asked for again, and not more than that."""
    hub.script(Rule(host="cdn", method="GET"), Reset(BREAK))
    assert (await blob.get()).body == blob.data
    first, second = blob.asked()
    assert first is None
    assert starts_near(second, BREAK)
    assert await blob.held()


@pytest.mark.parametrize(
    "fault",
    [ExpiredUrl(), IgnoreRange(), BadContentRange(), BadContentRange("bytes 0-9/*"), Status(500), Status(404), Status(416)],
    ids=["expired", "ignored", "shifted", "sizeless", "500", "404", "416"],
)
async def test_resume_that_meets_a_fault(hub, blob, fault):
    """Whatever upstream answers to the request for the rest, the client gets the right bytes in the end."""
    hub.script(Rule(host="cdn", method="GET", range=False), Cut(BREAK))
    hub.script(Rule(host="cdn", method="GET", range=True), fault)
    assert (await blob.get()).body == blob.data
    first, *others = blob.asked()
    assert first is None
    assert len(others) in (1, 2)
    assert all(starts_near(header, BREAK) for header in others)
    assert await blob.held()


async def test_several_breaks(hub, blob):
    """One break after the other, each with some progress."""
    places = (MIB, MIB * 3 // 4, 600_000)
    for after in places:
        hub.script(Rule(host="cdn", method="GET"), Cut(after))
    assert (await blob.get()).body == blob.data
    begun = 0
    for after, header in zip(places, blob.asked()[1:], strict=True):
        assert starts_near(header, begun + after)
        begun = position(header)


async def test_upstream_gone_in_the_middle_ends_short_and_orderly(hub, blob, mirror):
    """When upstream stays broken the body ends short with a FIN, which clients resume from, and never with a reset."""
    hub.script(Rule(host="cdn", method="GET", range=False), Cut(MIB))
    hub.script(Rule(host="cdn", method="GET", range=True, times=None), Cut(0))
    async with raw(mirror, blob.path) as reader:
        status, headers = await raw_head(reader)
        assert status == 200
        assert headers["content-length"] == str(SIZE)
        body = await raw_body(reader)
    assert blob.data.startswith(body)
    assert MIB - BUFFERED <= len(body) <= MIB
    assert not await blob.held()
    hub.clear_script()
    answer = await blob.get(Range=f"bytes={MIB}-")
    assert answer.status == 206
    assert answer.body == blob.data[MIB:]
    assert await blob.held()
    assert starts_near(blob.asked()[-1], MIB)


async def test_wrong_byte_completes_no_body(hub, blob, mirror):
    """A wrong byte in a large blob: nobody gets its end, the connections end orderly, nothing wrong is held."""
    hub.script(Rule(host="cdn", method="GET"), Corrupt(5))
    gate = blob.gate(SIZE - 1)
    async with raw(mirror, blob.path) as one, raw(mirror, blob.path) as two:
        await gate.reached.wait()
        for reader in (one, two):
            assert (await raw_head(reader))[0] == 200
        gate.release()
        for reader in (one, two):
            assert 0 < len(await raw_body(reader)) <= SIZE - HELD_BACK
    assert await blob.held()
    assert len(blob.fetched()) == 2
    assert (await blob.get()).body == blob.data
    assert await mirror.metric("downloads_total", result="digest_mismatch") == 1


async def test_wrong_byte_twice(hub, blob, mirror):
    """Wrong bytes again: one retry and no more, nothing is held; the next pull with good bytes works."""
    hub.script(Rule(host="cdn", method="GET", times=2), Corrupt(5))
    with pytest.raises(aiohttp.ClientPayloadError):
        await blob.get()
    assert not await blob.held()
    assert mirror.partials() == []
    assert len(blob.fetched()) == 2
    assert (await blob.get()).body == blob.data


async def test_wrong_byte_in_a_small_blob_is_not_seen(hub, mirror):
    """A small blob is fetched again before a client has seen anything of it."""
    blob = Transfer(hub, mirror, 1000)
    hub.script(Rule(host="cdn", method="GET"), Corrupt(5))
    answer = await blob.get()
    assert (answer.status, answer.body) == (200, blob.data)


async def test_wrong_byte_in_a_small_blob_twice_is_an_error(hub, mirror):
    """And if it is wrong again the client is told so, with a status that sends it to another host."""
    blob = Transfer(hub, mirror, 1000)
    hub.script(Rule(host="cdn", method="GET", times=2), Corrupt(5))
    answer = await blob.get()
    assert answer.status == 503
    assert answer.code() == "UNAVAILABLE"
    assert not await blob.held()
    assert (await blob.get()).body == blob.data


async def test_page_instead_of_a_blob(hub, mirror):
    """A page for people with status 200 is never given out as the blob, nor the blob cut to the page's size."""
    blob = Transfer(hub, mirror, 1000)
    page = b"<html>please log in</html>"
    hub.script(Rule(host="cdn", method="GET"), Status(200, body=page, content_type="text/html"))
    answer = await blob.get()
    assert answer.status == 503 or answer.body == blob.data
    assert await blob.held()
    assert (await blob.get()).body == blob.data


@pytest.mark.parametrize("stays", [True, False], ids=["client stays", "client has left"])
async def test_restart_in_the_middle(hub, tmp_path, monkeypatch, stays):
    """A mirror that is stopped in mid-blob ends its clients orderly, and goes on from there after its start."""
    monkeypatch.setattr("mirror.service.mirror.DRAIN_S", 0.1)
    mirror = MirrorUnderTest(hub, tmp_path / "other")
    async with contextlib.AsyncExitStack() as stack:
        async with mirror:
            blob = Transfer(hub, mirror, SIZE)
            gate = blob.gate(MIB)
            reader = await stack.enter_async_context(raw(mirror, blob.path))
            await raw_head(reader)
            async with asyncio.timeout(LIMIT):
                body = await reader.readexactly(MIB)
            assert gate.reached.is_set()
            if not stays:
                await stack.aclose()
        if stays:
            assert await raw_body(reader) == b""
        assert body == blob.data[:MIB]
    gate.release()
    hub.clear_script()
    async with MirrorUnderTest(hub, tmp_path / "other") as blob.mirror:
        assert (await blob.get()).body == blob.data
        assert blob.asked() == [None, f"bytes={MIB}-"]
        assert await blob.held()
        assert await blob.mirror.metric("download_resumes_total", reason="restart") == 1


async def test_expired_address_on_the_first_request(hub, blob):
    """A signed address that has expired before it was used is asked for anew."""
    hub.script(Rule(host="cdn", method="GET"), ExpiredUrl())
    assert (await blob.get()).body == blob.data
    assert hub.count(host="registry", kind="blob", method="GET", status=307) == 2


async def test_no_byte_at_all_is_an_error_answer(hub, blob):
    """If upstream breaks before the first byte, and again, there is a proper error and no empty 200."""
    hub.script(CDN, Status(500))
    answer = await blob.get()
    assert answer.status == 503
    assert answer.code() == "UNAVAILABLE"
    assert blob.mirror.partials() == []


async def test_no_descriptor_for_a_reader(blob, mirror, monkeypatch):
    """A reader for which no descriptor is left gets the whole blob past the store."""
    real = os.open

    def open_without_readers(path, flags, *args, **kwargs):
        if str(path).startswith("/proc/self/fd/") and flags & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(path, flags, *args, **kwargs)

    monkeypatch.setattr(os, "open", open_without_readers)
    answer = await blob.get()
    assert (answer.status, answer.body) == (200, blob.data)
    monkeypatch.undo()
    assert await blob.held()
