"""The store cannot take the bytes: pulls go on without it."""

import asyncio
import contextlib
import dataclasses
import errno
import os
import tracemalloc

import pytest

from mirror.core.digest import Digest
from mirror.download.partial import CHUNK
from mirror.download.passthrough import PassthroughStream
from mirror.download.reader import Span, StreamingBody
from mirror.download.verifier import Verifier
from mirror.errors import (
    ConnectionWithdrawn,
    DigestMismatch,
    NotFound,
    StorageError,
    UpstreamDisconnected,
    UpstreamProtocolError,
    UpstreamTimeout,
)
from mirror.upstream import connections
from tests.download.source import ScriptedSource
from tests.download.world import HELD_BACK
from tests.support.files import opened_under
from tests.support.names import content

DATA = content(2 * CHUNK + 12_345)


@pytest.fixture
def source():
    return ScriptedSource(DATA)


@pytest.fixture
def broken_open(monkeypatch):
    """No partial file can be opened."""
    real = os.open

    def refused(path, *args, **kwargs):
        if "/partial/" in str(path):
            raise OSError(errno.EROFS, "Read-only file system")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refused)


async def drained(body, start, stop):
    data = b""
    async for span in body.spans(start, stop):
        data += os.pread(span.file.fileno(), span.count, span.start) if isinstance(span, Span) else span
    return data


@pytest.mark.parametrize("size", [0, 1, HELD_BACK, HELD_BACK + 1, CHUNK, len(DATA)])
async def test_read_only_store(world, broken_open, size):
    """Without a store every reader has its own stream, and the whole blob."""
    source = ScriptedSource(content(size))
    worker = world.worker()
    readers = [world.pull(worker, source) for _ in range(2)]
    for reader in readers:
        assert await reader.whole() == source.data
        assert reader.body.bypassed
    assert world.results == ["bypassed"]
    assert source.under_way == 0


async def test_no_room_to_begin(world, source, monkeypatch):
    """If not even the map can be written, readers are served past the store, and nothing is left there."""

    def refused(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", refused)
    worker = world.worker()
    readers = [world.pull(worker, source) for _ in range(3)]
    for reader in readers:
        assert await reader.whole() == DATA
    assert world.results == ["bypassed"]
    await world.quiet()
    assert world.partials() == []


@pytest.mark.parametrize("room", [0, 1000, CHUNK, CHUNK + 1000, len(DATA) - 1])
async def test_full_in_the_middle(world, source, disk, room):
    """Wherever the disk gets full, readers go on by their own stream from where they are, and get the right bytes."""
    disk.room = room
    worker = world.worker()
    readers = [world.pull(worker, source) for _ in range(2)]
    late = world.pull(worker, source, CHUNK, CHUNK + 10)
    for reader in readers:
        assert await reader.whole() == DATA
    assert await late.whole() == DATA[CHUNK : CHUNK + 10]
    assert world.results[0] == "bypassed"
    assert not world.holds(DATA)
    starts = [start for start, _ in source.opens]
    assert all(start <= room for start in starts if start != CHUNK)


async def test_full_under_a_far_range(world, disk):
    """A reader of the end of the blob goes on past the store although what is in front of it has not arrived."""
    far = 4 * CHUNK
    source = ScriptedSource(content(far + 2 * HELD_BACK))
    worker, near_gate, far_gate = world.worker(), source.gate(100), source.gate(far + 1000)
    whole = world.pull(worker, source)
    await near_gate.reached.wait()
    tail = world.pull(worker, source, far, None)
    await tail.has(1000)
    await far_gate.reached.wait()
    disk.room = 200
    near_gate.release()
    far_gate.release()
    assert await whole.whole() == source.data
    assert await tail.whole() == source.data[far:]


async def test_full_while_some_are_far_behind(world, source, disk):
    """A reader that has read nothing yet when the disk gets full reads what is there, then past the store."""
    worker = world.worker()
    disk.room = CHUNK
    gate = source.gate(CHUNK)
    body = StreamingBody(worker.start(Digest.of(DATA), source))
    await body.ready(0, len(DATA))
    spans = body.spans(0, len(DATA))
    first = await anext(spans)
    data = os.pread(first.file.fileno(), first.count, first.start)
    await gate.reached.wait()
    gate.release()
    await world.ended()
    await world.quiet()
    async for span in spans:
        data += os.pread(span.file.fileno(), span.count, span.start) if isinstance(span, Span) else span
    assert data == DATA
    assert body.bypassed
    await body.close()


async def test_full_between_size_and_first_byte(world, source, disk):
    """A reader that knew the size, but had not opened the file when the download failed, is served past the store."""
    disk.room = CHUNK
    gate = source.gate(CHUNK)
    body = StreamingBody(world.worker().start(Digest.of(DATA), source))
    assert await body.sized() == len(DATA)
    await gate.reached.wait()
    gate.release()
    await world.ended()
    await world.quiet()
    await body.ready(0, len(DATA))
    assert await drained(body, 0, len(DATA)) == DATA
    await body.close()


async def test_commit_that_fails(world, source, monkeypatch):
    """A blob that was verified but cannot be committed is given to its readers all the same."""

    def refused(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "rename", refused)
    worker = world.worker()
    reader = world.pull(worker, source)
    assert await reader.whole() == DATA
    assert await world.ended() == ["bypassed"]


async def test_room_again(world, source, disk):
    """What did not fit is given up, not to fill the disk for nothing; when there is room again the next pull holds the blob."""
    disk.room = CHUNK
    worker = world.worker()
    assert await world.pull(worker, source).whole() == DATA
    await world.quiet()
    disk.room = None
    opens = len(source.opens)
    assert await world.pull(worker, source).whole() == DATA
    assert await world.ended(2) == ["bypassed", "committed"]
    assert source.opens[opens:] == [(0, None)]


@pytest.mark.parametrize("at", [0, CHUNK + 5, len(DATA) - 1])
@pytest.mark.parametrize("room", [None, CHUNK])
async def test_wrong_bytes_past_the_store_are_not_completed(world, source, disk, at, room, monkeypatch):
    """A body that comes past the store is verified, too, also across the change; its last bytes are not given."""
    if room is None:
        monkeypatch.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    disk.room = room
    wrong = bytearray(DATA)
    wrong[at] ^= 1
    source.data = bytes(wrong)
    reader = world.pull(world.worker(), source, digest=Digest.of(DATA))
    assert isinstance(await reader.ended_short(), DigestMismatch)
    assert len(reader.data) <= len(DATA) - HELD_BACK


@pytest.mark.parametrize("at", [1, CHUNK, len(DATA) - 1])
async def test_breaks_past_the_store_are_resumed(world, source, broken_open, at):
    """A stream past the store that breaks goes on from the broken byte."""
    source.fail_at(at, UpstreamDisconnected("cut"))
    assert await world.pull(world.worker(), source).whole() == DATA
    assert source.opens[-1] == (at, None)
    assert source.fetched_twice() == []


async def test_breaks_past_the_store_end_somewhere(world, source, broken_open):
    """But not for ever."""
    source.fail_at(CHUNK, *[UpstreamDisconnected("cut")] * 3)
    reader = world.pull(world.worker(), source)
    assert isinstance(await reader.ended_short(), UpstreamDisconnected)
    assert reader.data == DATA[:CHUNK]


async def test_refusal_past_the_store(world, source, broken_open):
    """A no of upstream is a no without a store, too."""
    source.refuse(NotFound("404"))
    assert isinstance(await world.pull(world.worker(), source).ended_short(), NotFound)


async def test_ranges_past_the_store(world, source, broken_open):
    """A range is asked for as such, and several of one body do not mix."""
    body = StreamingBody(world.worker().start(Digest.of(DATA), source))
    assert await body.sized() == len(DATA)
    for start, stop in ((CHUNK, CHUNK + 100), (CHUNK, CHUNK + 200), (5, 10), (len(DATA) - 3, len(DATA))):
        await body.ready(start, len(source.data))
        assert await drained(body, start, stop) == DATA[start:stop]
    await body.close()
    assert source.under_way == 0


async def test_another_size_past_the_store(world, source, disk):
    """If upstream names another size to the reader's own stream than to the download, no body is completed."""
    disk.room = 0
    source.sizes = [1000]
    reader = world.pull(world.worker(), source)
    assert isinstance(await reader.ended_short(), UpstreamProtocolError)
    assert not reader.data


async def test_memory_past_the_store_is_bounded(world, broken_open):
    """A stream past the store keeps back a bounded part of the blob, however large that is."""
    source = ScriptedSource(content(16 * CHUNK))
    body = StreamingBody(world.worker().start(Digest.of(source.data), source))
    await body.sized()
    tracemalloc.start()
    try:
        async for _ in body.spans(0, len(source.data)):
            pass
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    await body.close()


async def test_leaving_in_the_middle_closes_the_stream(world, source, broken_open):
    """A reader past the store that goes takes its stream with it, and leaves no descriptor."""
    gate = source.gate(CHUNK)
    reader = world.pull(world.worker(), source)
    await gate.reached.wait()
    assert source.under_way == 1
    await reader.leave()
    assert source.under_way == 0
    assert opened_under(world.layout.root) == []


async def test_unreadable_partial(world, source, monkeypatch):
    """If what an earlier run has written cannot be read back, readers get their bytes past the store."""
    gate, worker = source.gate(CHUNK), world.worker()
    world.pull(worker, source)
    await gate.reached.wait()
    await worker.close()
    gate.release()

    def unreadable(*args):
        raise StorageError("reading back: Input/output error", "io")

    monkeypatch.setattr(Verifier, "_read_back", unreadable)
    assert await world.pull(world.worker(), source).whole() == DATA
    assert await world.ended() == ["bypassed"]


async def test_read_only_store_and_a_blob_that_upstream_says_is_empty(world, broken_open):
    """Past the store, too, an empty body is not completed for a digest that is not that of nothing."""
    reader = world.pull(world.worker(), ScriptedSource(b""), digest=Digest.of(DATA))
    with pytest.raises(DigestMismatch):
        await reader.whole()


async def test_read_only_store_and_a_silent_upstream(world, source, broken_open):
    """The time limit for the first byte holds past the store, too."""
    world.limits = dataclasses.replace(world.limits, first_byte_s=0.2)
    hold = source.hold_answer()
    reader = world.pull(world.worker(), source)
    assert isinstance(await reader.ended_short(), UpstreamTimeout)
    assert source.under_way == 0
    hold.release()


async def test_reader_behind_a_silent_upstream_when_the_disk_is_full(world, source, disk):
    """So it does for one who has been told the size already."""
    world.limits = dataclasses.replace(world.limits, first_byte_s=0.5)
    worker, gate = world.worker(), source.gate(CHUNK)
    disk.room = CHUNK
    first = world.pull(worker, source)
    await first.has(CHUNK)
    late = world.pull(worker, source, 2 * CHUNK)
    hold = source.hold_answer()
    gate.release()
    assert isinstance(await late.ended_short(), UpstreamTimeout)
    hold.release()
    assert await first.whole() == DATA


class WithdrawableSource(ScriptedSource):
    """An upstream whose connections can be taken back."""

    def __init__(self, data):
        super().__init__(data)
        self.withdraws = []

    @contextlib.asynccontextmanager
    async def open(self, start, stop):
        async with connections.withdrawable():
            self.withdraws.append(connections.withdraw.get())
            async with super().open(start, stop) as stream:
                yield stream


@pytest.fixture
async def withdrawable(world):
    """A stream past the store from an upstream whose connections can be taken back."""
    source = WithdrawableSource(DATA)
    stream = PassthroughStream(Digest.of(DATA), source, world.executor, 3, None)
    yield source, stream
    await stream.close()
    assert source.under_way == 0


async def test_connection_withdrawn_while_the_client_is_slow(withdrawable):
    """A connection that is taken back while the reader waits for its client is replaced; the reader is not cancelled."""
    source, stream = withdrawable
    blocks = stream.blocks(0, len(DATA), None)
    data = await anext(blocks)
    source.withdraws[0]()
    # What the reader does between two blocks takes a few turns of the event loop.
    for _ in range(3):
        await asyncio.sleep(0)
    async for block in blocks:
        data += block
    assert data == DATA
    assert len(source.opens) == 2


async def test_connection_withdrawn_while_upstream_is_slow(withdrawable):
    """A connection that is taken back while the reader waits for upstream is replaced, too."""
    source, stream = withdrawable
    gate = source.gate(CHUNK)
    reading = asyncio.create_task(collected(stream))
    await gate.reached.wait()
    source.withdraws[0]()
    gate.release()
    assert await reading == DATA
    assert source.opens == [(0, None), (CHUNK, None)]


async def test_connection_withdrawn_again_and_again(withdrawable):
    """Where every connection is taken back before a byte comes, the body ends with that as its cause."""
    source, stream = withdrawable
    gate = source.gate(0)
    reading = asyncio.create_task(collected(stream))
    await gate.reached.wait()
    while not reading.done():
        source.withdraws[-1]()
        await asyncio.sleep(0)
    with pytest.raises(ConnectionWithdrawn):
        await reading
    # Opening takes a second try of its own.
    assert len(source.opens) <= 4


async def collected(stream):
    return b"".join([block async for block in stream.blocks(0, len(DATA), None)])
