"""What one step of an ingest does: it writes, marks and hashes all bytes in hand at once."""

import asyncio
import contextlib
import itertools
import threading

import pytest

from mirror.core.digest import Digest
from mirror.download import verifier
from mirror.download.chunk_map import ChunkMap
from mirror.download.partial import CHUNK, Partial
from mirror.download.verifier import Verifier
from mirror.errors import DownloadAbandoned, StorageError, UpstreamDisconnected
from mirror.storage.account import AccountFile
from tests.download.source import ScriptedSource
from tests.download.world import ingest_of, open_partial
from tests.support.names import content
from tests.support.waiting import LIMIT, eventually

DATA = content(8 * CHUNK + 12_345)
FAR = 5 * CHUNK


@pytest.fixture
def writes(monkeypatch):
    """The parts that have been written, as (start, stop)."""
    parts, write = [], Partial.write

    def recorded(self, offset, data):
        parts.append((offset, offset + len(data)))
        write(self, offset, data)

    monkeypatch.setattr(Partial, "write", recorded)
    return parts


@pytest.fixture
def unreadable(monkeypatch):
    """Nothing that was written can be read back for hashing."""

    def broken(*_):
        raise StorageError("reading back: Input/output error", "io")

    monkeypatch.setattr(verifier, "read_piece", broken)


@pytest.mark.parametrize("block", [1000, 64 << 10, CHUNK, CHUNK + 1000, 3 * CHUNK, len(DATA)])
async def test_each_block_is_one_write(world, writes, block):
    """A block of any size, over any number of chunks, is written at once and to its place."""
    source = ScriptedSource(DATA[: 3 * block] if block < CHUNK else DATA, block)
    assert await world.pull(world.worker(), source).whole() == source.data
    assert await world.ended() == ["committed"]
    assert writes == source.sent


async def test_first_bytes_take_two_turns_of_a_thread(world):
    """One opens the partial file, one starts it and writes what has come; a client waits for each."""
    turns, submit = [], world.executor.submit

    def counted(work, /, *args):
        turns.append(work)
        return submit(work, *args)

    world.executor.submit = counted
    source = ScriptedSource(DATA)
    gate = source.gate(64 << 10)
    reader = world.pull(world.worker(), source)
    await reader.has(64 << 10)
    assert len(turns) == 2
    gate.release()
    assert await reader.whole() == DATA


async def test_size_is_known_before_a_late_first_block(world):
    """A file is started without its first block if that takes its time."""
    source = ScriptedSource(DATA)
    gate = source.gate(0)
    reader = world.pull(world.worker(), source)
    async with asyncio.timeout(LIMIT):
        assert await reader.body.sized() == len(DATA)
    assert not source.sent
    gate.release()
    assert await reader.whole() == DATA


async def test_download_that_is_stopped_before_its_first_block_ends_the_stream(world):
    """Nothing reads on from a stream that is closed."""
    source = ScriptedSource(DATA)
    gate = source.gate(0)
    reader = world.pull(world.worker(), source)
    await gate.reached.wait()
    ingest_of(reader).stop()
    assert isinstance(await reader.ended_short(), DownloadAbandoned)
    gate.release()
    await world.quiet()
    assert (source.under_way, source.sent) == (0, [])


@pytest.mark.parametrize("block", [64 << 10, CHUNK, 3 * CHUNK + 7])
async def test_sequential_miss_is_not_read_back(world, unreadable, block):
    """Bytes that arrive without a gap are hashed from memory, also across connections that break."""
    source = ScriptedSource(DATA, block)
    source.fail_at(FAR + 10, UpstreamDisconnected("cut"))
    assert await world.pull(world.worker(), source).whole() == DATA
    assert await world.ended() == ["committed"]


@pytest.mark.parametrize("block", [64 << 10, CHUNK, 3 * CHUNK])
async def test_step_ends_where_another_writer_begins(world, writes, block):
    """A block that reaches into a chunk of another range fetcher is written up to there; no byte is written twice."""
    source = ScriptedSource(DATA, block)
    worker, gate, far = world.worker(), source.gate(100), source.gate(FAR + 500)
    whole = world.pull(worker, source)
    await gate.reached.wait()
    ahead = world.pull(worker, source, FAR, FAR + 10)
    assert await ahead.whole() == DATA[FAR : FAR + 10]
    gate.release()
    await whole.has(FAR)
    far.release()
    assert await whole.whole() == DATA
    assert await world.ended() == ["committed"]
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(sorted(writes)))


async def test_far_piece_does_not_keep_the_front_from_being_hashed(world, layout, monkeypatch):
    """While a thread writes a piece from elsewhere, the front piece is hashed from memory as it is written."""
    partial = open_partial(layout, Digest.of(DATA))
    partial.begin(len(DATA))
    begun, hold, write = threading.Event(), threading.Event(), Partial.write

    def held(self, offset, data):
        if offset:
            begun.set()
            assert hold.wait(LIMIT)
        write(self, offset, data)

    monkeypatch.setattr(Partial, "write", held)
    hashing = Verifier(partial, world.executor)
    far = asyncio.create_task(asyncio.to_thread(hashing.write, CHUNK, DATA[CHUNK : 2 * CHUNK]))
    assert await asyncio.to_thread(begun.wait, LIMIT)
    await asyncio.to_thread(hashing.write, 0, DATA[:CHUNK])
    assert hashing._position == CHUNK
    hold.set()
    await far
    partial.close()


class PausingStream:
    """A stream that pauses after its first block, which is in `buffer`."""

    start, is_partial = 0, True

    def __init__(self, source):
        self.size = len(source.data)
        self.buffer = bytearray(source.data[:CHUNK])
        self.paused, self.event = asyncio.Event(), asyncio.Event()
        self._rest = source.data[CHUNK:]

    async def blocks(self):
        yield memoryview(self.buffer)
        self.paused.set()
        await self.event.wait()
        yield self._rest


async def test_block_is_not_kept_while_upstream_pauses(world, monkeypatch):
    """What has been written is released before the next block comes."""
    source = ScriptedSource(DATA)
    stream = PausingStream(source)
    monkeypatch.setattr(source, "open", lambda *_: contextlib.nullcontext(stream))
    reader = world.pull(world.worker(), source)
    async with asyncio.timeout(LIMIT):
        await stream.paused.wait()
    # A thread may refer to it for a moment after its work.
    await eventually(lambda: _is_released(stream.buffer))
    stream.event.set()
    assert await reader.whole() == DATA
    assert await world.ended() == ["committed"]


def _is_released(buffer):
    try:
        buffer.clear()
    except BufferError:
        return False
    return True


async def test_new_blob_is_reserved_by_one_change_of_the_account(world, monkeypatch):
    """The start of a blob of which nothing has arrived before releases nothing: each change takes the lock of the account."""
    changes, change = [], AccountFile.change

    def counted(self):
        changes.append(threading.current_thread())
        return change(self)

    monkeypatch.setattr(AccountFile, "change", counted)
    source = ScriptedSource(DATA)
    gate = source.gate(10)
    reader = world.pull(world.worker(), source)
    await gate.reached.wait()
    assert len(changes) == 1
    gate.release()
    assert await reader.whole() == DATA
    assert await world.ended() == ["committed"]


async def test_map_is_freed_by_a_thread(world, monkeypatch):
    """The last close of a removed file frees its blocks, which may take a disk a while: no event loop waits for that."""
    closed_by, close = [], ChunkMap.close

    def recorded(self):
        if self._opened is not None:
            closed_by.append(threading.current_thread())
        close(self)

    monkeypatch.setattr(ChunkMap, "close", recorded)
    source = ScriptedSource(DATA)
    assert await world.pull(world.worker(), source).whole() == DATA
    assert await world.ended() == ["committed"]
    assert len(closed_by) == 1
    assert closed_by[0] is not threading.main_thread()


async def test_hashing_in_hand_goes_on_behind_what_was_read_back(world):
    """After a restart the old bytes are read back, those that follow are hashed as they arrive, and the digest is right."""
    source, worker = ScriptedSource(DATA, 3 * CHUNK), world.worker()
    gate = source.gate(FAR)
    reader = world.pull(worker, source)
    await gate.reached.wait()
    await worker.close()
    await reader.ended_short()
    gate.release()
    assert await world.pull(world.worker(), source).whole() == DATA
    assert await world.ended() == ["committed"]
    assert source.opens == [(0, None), (FAR, None)]


@pytest.mark.parametrize("at", [0, CHUNK, 3 * CHUNK - 1, len(DATA) - 1])
async def test_wrong_byte_in_a_large_step(world, at):
    """However large the steps, one wrong byte is noticed before the end."""
    source = ScriptedSource(DATA, 3 * CHUNK)
    source.corrupt(at)
    reader = world.pull(world.worker(), source, digest=Digest.of(DATA))
    await reader.ended_short()
    assert len(reader.data) < len(DATA)
    assert await world.ended(2) == ["digest_mismatch", "committed"]
