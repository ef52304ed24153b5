"""Several workers on one store: one fetches, the others follow, and take over if it dies."""

import asyncio
import contextlib
import dataclasses
import os
import subprocess
import sys
import threading

import pytest

from mirror.core.digest import Digest
from mirror.download.chunk_map import Fate
from mirror.download.follower import Follower
from mirror.download.partial import CHUNK, Partial
from mirror.download.reader import StreamingBody
from mirror.download.states import Verified
from mirror.errors import NotFound, StorageError
from tests.download.source import ScriptedSource
from tests.download.world import HELD_BACK, open_partial
from tests.support.names import content
from tests.support.waiting import LIMIT, eventually

DATA = content(4 * CHUNK + 12_345)
DIGEST = Digest.of(DATA)
MIDDLE = 2 * CHUNK + 777


@pytest.fixture
def first():
    return ScriptedSource(DATA)


@pytest.fixture
def second():
    """The same blob by way of the other worker."""
    return ScriptedSource(DATA)


async def test_one_source_for_two_workers(world, first, second):
    """While one worker fetches, the other's readers stream the same file; upstream is asked once."""
    gate = first.gate(MIDDLE)
    driver, follower = world.worker(), world.worker()
    one = world.pull(driver, first)
    await gate.reached.wait()
    two = world.pull(follower, second)
    await two.has(MIDDLE)
    assert two.data == DATA[:MIDDLE]
    gate.release()
    assert await two.whole() == await one.whole() == DATA
    await world.quiet()
    assert world.results == ["committed"]
    assert first.opens == [(0, None)]
    assert second.opens == []


async def test_following_from_before_the_size(world, first, second):
    """A follower may come before the first worker knows the size."""
    gate = first.hold_answer()
    driver, follower = world.worker(), world.worker()
    one = world.pull(driver, first)
    await gate.reached.wait()
    two = world.pull(follower, second)
    gate.release()
    assert await one.whole() == await two.whole() == DATA
    assert second.opens == []


async def test_range_far_ahead_at_the_follower(world, first, second):
    """A reader far ahead at the follower gets a filler there, and no byte is fetched by both."""
    gate = first.gate(100)
    driver, follower = world.worker(), world.worker()
    one = world.pull(driver, first)
    await gate.reached.wait()
    two = world.pull(follower, second, 3 * CHUNK, 3 * CHUNK + 10)
    assert await two.whole() == DATA[3 * CHUNK : 3 * CHUNK + 10]
    gate.release()
    assert await one.whole() == DATA
    await world.quiet()
    assert second.opens == [(3 * CHUNK, None)]
    assert first.given() + second.given() == len(DATA)


async def test_step_to_the_next_chunk_leaves_no_gap(world, first, second, monkeypatch):
    """A follower that sees one chunk complete before the driver is in the next does not snatch that from it."""
    seen, real = threading.Event(), Partial.write

    def write(self, offset, data):
        real(self, offset, data)
        if offset + len(data) == CHUNK:
            assert seen.wait(LIMIT)

    monkeypatch.setattr(Partial, "write", write)
    driver, follower = world.worker(), world.worker()
    one, two = world.pull(driver, first), world.pull(follower, second)
    await two.has(CHUNK)
    # The follower's reader has had every byte; with its next step it asks for the chunk that begins here.
    for _ in range(10):
        await asyncio.sleep(0)
    seen.set()
    assert await one.whole() == await two.whole() == DATA
    # Either of them may have become the driver.
    assert sorted([first.opens, second.opens]) == [[], [(0, None)]]


async def test_follower_takes_over(world, first, second):
    """When the first worker stops, the follower goes on at exactly the byte where it was, and its readers notice nothing."""
    gate = first.gate(MIDDLE)
    driver, follower = world.worker(), world.worker()
    world.pull(driver, first)
    await gate.reached.wait()
    two = world.pull(follower, second)
    await two.has(MIDDLE)
    await driver.close()
    assert await two.whole() == DATA
    assert second.opens == [(MIDDLE, None)]
    assert await world.ended() == ["committed"]


async def test_follower_takes_over_before_the_size(world, first, second):
    """Also when the first worker stops before upstream has answered it."""
    gate = first.hold_answer()
    driver, follower = world.worker(), world.worker()
    world.pull(driver, first)
    await gate.reached.wait()
    two = world.pull(follower, second)
    await driver.close()
    assert await two.whole() == DATA
    assert second.opens == [(0, None)]


async def test_wrong_digest_at_the_other_worker(world, first, second):
    """When the first worker finds the digest wrong, the follower's reader ends short; the next pull is right at both."""
    first.corrupt(1)
    gate = first.gate(len(DATA) - 1)
    driver, follower = world.worker(), world.worker()
    world.pull(driver, first)
    await gate.reached.wait()
    two = world.pull(follower, second)
    await two.has(len(DATA) - HELD_BACK)
    gate.release()
    await two.ended_short()
    assert len(two.data) == len(DATA) - HELD_BACK
    for worker, source in ((driver, first), (follower, second)):
        assert await world.pull(worker, source).whole() == DATA


async def test_no_at_the_other_worker_is_found_out_by_asking(world, first, second):
    """When upstream tells the first worker no before a byte came, the follower asks for itself and passes on what it hears."""
    gate = first.hold_answer()
    first.refuse(NotFound("404"))
    second.refuse(NotFound("404 for the second, too"))
    driver, follower = world.worker(), world.worker()
    world.pull(driver, first)
    await gate.reached.wait()
    two = world.pull(follower, second)
    gate.release()
    error = await two.ended_short()
    assert isinstance(error, NotFound)
    assert "second" in str(error)


async def test_no_room_at_the_other_worker(world, first, second, monkeypatch):
    """When the disk of the first worker is full in the middle, the follower's reader too goes on past the store, where it was."""
    real = Partial.write

    def write(self, offset, data):
        if offset >= MIDDLE:
            raise StorageError("writing: No space left on device", "full")
        real(self, offset, data)

    monkeypatch.setattr(Partial, "write", write)
    gate = first.gate(MIDDLE)
    driver, follower = world.worker(), world.worker()
    one = world.pull(driver, first)
    await gate.reached.wait()
    two = world.pull(follower, second)
    await two.has(MIDDLE)
    gate.release()
    assert await one.whole() == DATA
    assert await two.whole() == DATA
    assert second.opens == [(MIDDLE, None)]
    assert await world.ended(2) == ["bypassed"] * 2
    assert world.partials() == []


async def test_one_download_is_counted_once(world, first):
    """Of several workers that had readers of a blob only the one that fetched it reports a download."""
    gate = first.gate(MIDDLE)
    driver, follower = world.worker(), world.worker()
    one = world.pull(driver, first)
    await gate.reached.wait()
    two = world.pull(follower, ScriptedSource(DATA))
    await two.has(MIDDLE)
    gate.release()
    await one.whole()
    await two.whole()
    await world.quiet()
    assert world.results == ["committed"]


async def test_join_while_the_other_worker_commits(world, second, monkeypatch):
    """A follower that opens the bytes before and the map after another process's commit serves the committed blob at once."""
    other = open_partial(world.layout, DIGEST)
    assert other.try_acquire_driver()
    other.begin(len(DATA))
    for start in range(0, len(DATA), CHUNK):
        other.write(start, DATA[start : start + CHUNK])
    real, committed = os.open, []

    def slow(path, *args, **kwargs):
        if str(path).endswith(".map") and not committed:
            committed.append(True)
            world.files.commit(other.path, other.descriptor, DIGEST)
            other.remove_map()
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", slow)
    reader = world.pull(world.worker(), second)
    assert await reader.whole() == DATA
    assert committed
    assert second.opens == []
    other.close()


async def test_other_worker_that_makes_no_progress(world, first, second, monkeypatch):
    """A follower does not wait for ever for a worker that hangs: its readers go on past the store, and it keeps what it has."""
    world.limits = dataclasses.replace(world.limits, stall_s=0.1)
    gate = first.gate(MIDDLE)
    driver, follower = world.worker(), world.worker()
    one = world.pull(driver, first)
    await gate.reached.wait()
    two = world.pull(follower, second)
    assert await two.whole() == DATA
    gate.release()
    assert await one.whole() == DATA


def committing(layout):
    """Another worker's partial with everything in it, and driven by that."""
    other = open_partial(layout, DIGEST)
    assert other.try_acquire_driver()
    other.begin(len(DATA))
    for start in range(0, len(DATA), CHUNK):
        other.write(start, DATA[start : start + CHUNK])
    return other


async def test_hashing_is_no_hang(world, second):
    """While another worker hashes what has arrived, however long that takes, its readers stay with the store."""
    world.limits = dataclasses.replace(world.limits, stall_s=1.5)
    with contextlib.closing(committing(world.layout)) as other:
        reader = world.pull(world.worker(), second)
        await reader.has(len(DATA) - HELD_BACK)
        # Longer than that in all, and much less in each step.
        for hashed in range(5):
            other.map.write_hashed(hashed + 1)
            await asyncio.sleep(0.4)
        assert second.opens == []
        other.publish(Fate.VERIFIED)
        assert await reader.whole() == DATA
    await world.ended()


async def test_flushing_is_no_hang(world, second):
    """Bytes that another worker has verified are given out while it flushes them, and it is not taken to hang."""
    world.limits = dataclasses.replace(world.limits, stall_s=0.1)
    with contextlib.closing(committing(world.layout)) as other:
        other.publish(Fate.VERIFIED)
        worker = world.worker()
        assert await world.pull(worker, second).whole() == DATA
        await asyncio.sleep(0.5)
        assert len(worker) == 1
        world.files.commit(other.path, other.descriptor, DIGEST)
        await world.quiet()
    assert second.opens == []
    assert world.results == []


async def test_committed_and_purged_before_the_follower_looks(world, second):
    """Readers of a follower finish from what they have open, though the blob comes and goes between two of its looks."""
    with contextlib.closing(committing(world.layout)) as other:
        reader = world.pull(world.worker(), second)
        await reader.has(len(DATA) - HELD_BACK)
        # No turn of the event loop in between.
        other.publish(Fate.VERIFIED)
        world.files.commit(other.path, other.descriptor, DIGEST)
        other.remove_map()
        world.files.delete(DIGEST)
        assert await reader.whole() == DATA
    await world.quiet()
    assert second.opens == []


async def test_purged_between_size_and_first_byte(world, first):
    """A reader that knows the size and has not read yet is given the whole blob, also if it is purged meanwhile."""
    worker = world.worker()
    body = StreamingBody(worker.start(DIGEST, first))
    assert await body.sized() == len(DATA)
    await world.quiet()
    world.files.delete(DIGEST)
    read = bytearray()
    await body.ready(0, len(DATA))
    async for span in body.spans(0, len(DATA)):
        read += os.pread(span.file.fileno(), span.count, span.start)
    await body.close()
    assert read == DATA


@pytest.mark.parametrize("verified", [False, True], ids=["still arriving", "verified"])
async def test_flush_that_fails(world, first, second, monkeypatch, verified):
    """Readers leave bytes that the disk has failed to take, those of a follower as those of the driver, and are given upstream's.

    A follower may or may not have seen before that the blob was verified.
    """
    begun, go = threading.Event(), threading.Event()
    fsync = os.fsync

    def broken(descriptor):
        if "/partial/" in os.readlink(f"/proc/self/fd/{descriptor}"):
            begun.set()
            assert go.wait(LIMIT)
            raise OSError(5, "Input/output error")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", broken)
    gate = first.gate(MIDDLE)
    driver, follower = world.worker(), world.worker()
    one = world.pull(driver, first)
    await gate.reached.wait()
    slow = SlowReader(driver.find(DIGEST))
    late = SlowReader(follower.start(DIGEST, second))
    for reader in (slow, late):
        await reader.first()
    if not verified:
        monkeypatch.setattr(Follower, "_progressed", lambda self: False)
    gate.release()
    assert await one.whole() == DATA
    assert await asyncio.to_thread(begun.wait, LIMIT)
    if verified:
        await eventually(lambda: isinstance(follower.find(DIGEST).state, Verified))
    go.set()
    await world.ended(2)
    assert second.opens == []
    for reader in (slow, late):
        assert await reader.rest() == DATA
    assert first.opens == [(0, None), (slow.read.count, None)]
    assert second.opens == [(late.read.count, None)]
    assert world.partials() == []


class SlowReader:
    """Takes one span of a download, and the rest when it is told to, which has to come past the store."""

    def __init__(self, download):
        self._body = StreamingBody(download)

    async def first(self):
        await self._body.sized()
        self._spans = self._body.spans(0, len(DATA))
        self.read = await anext(self._spans)

    async def rest(self):
        """All bytes, the first ones too."""
        data = bytearray(os.pread(self.read.file.fileno(), self.read.count, self.read.start))
        async for block in self._spans:
            assert isinstance(block, bytes)
            data += block
        await self._body.close()
        return bytes(data)


KILLED = """
import asyncio, sys
from tests.download.source import ScriptedSource
from tests.download.world import World
from tests.support.names import content

async def main():
    world = World(sys.argv[1])
    source = ScriptedSource(content(int(sys.argv[2])))
    gate = source.gate(int(sys.argv[3]))
    world.pull(world.worker(), source)
    await gate.reached.wait()
    print("there", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_killed_process_is_succeeded(world, second):
    """A worker process that is killed in the middle frees its locks; a follower completes the blob from its last byte."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", KILLED, world.layout.root, str(len(DATA)), str(MIDDLE), stdout=subprocess.PIPE
    )
    try:
        async with asyncio.timeout(LIMIT):
            assert await process.stdout.readline() == b"there\n"
        reader = world.pull(world.worker(), second)
        await reader.has(MIDDLE)
        assert second.opens == []
    finally:
        process.kill()
        await process.communicate()
    assert await reader.whole() == DATA
    assert second.opens == [(MIDDLE, None)]
    await world.ended()
    assert world.files.read(DIGEST, len(DATA)) == DATA
