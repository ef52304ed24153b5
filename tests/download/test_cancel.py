"""The mirror is stopped at any moment: nothing leaks, nothing is locked, nothing is fetched again."""

import asyncio
import contextlib
import os
import threading

import pytest

from mirror.core.digest import Digest
from mirror.download.partial import CHUNK, Partial
from tests.download.source import ScriptedSource
from tests.download.world import InlineExecutor, World, open_partial
from tests.support.files import opened_under
from tests.support.names import content
from tests.support.waiting import LIMIT

DATA = content(3 * CHUNK + 5000)
DIGEST = Digest.of(DATA)
BLOCK = 512 << 10


@pytest.fixture
def inline(tmp_path, monkeypatch):
    """Makes stores whose every turn of the event loop can be counted."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return lambda name: World(tmp_path / name, InlineExecutor())


def free(layout):
    """Whether all locks of the blob are to be had."""
    with contextlib.closing(open_partial(layout, DIGEST)) as partial:
        if not partial.try_acquire_driver():
            return False
        if not partial.refresh():
            return True
        with contextlib.closing(partial.locks()) as lock:
            return all(partial.claim(lock, index) for index in range(-(-partial.map.size // CHUNK)))


async def interrupted(world, source, keyed_lock, readers):
    """Stop a worker after so many turns of the event loop; returns whether it had finished before."""
    worker = world.worker()
    pulls = [world.pull(worker, source, start, stop) for start, stop in readers]
    for _ in range(keyed_lock):
        await asyncio.sleep(0)
    async with asyncio.timeout(LIMIT):
        await worker.close()
        await asyncio.wait([reader.task for reader in pulls])
    return world.holds(DATA)


@pytest.mark.parametrize("readers", [[(0, None)], [(0, None), (2 * CHUNK + 100, 2 * CHUNK + 200)]], ids=["one", "with a range"])
async def test_stopped_at_every_turn(inline, readers):
    """After every number of turns: no descriptor stays open, no lock held, and the next run fetches just the rest."""
    keyed_lock, finished = 0, False
    while not finished:
        world, source = inline(str(keyed_lock)), ScriptedSource(DATA, BLOCK)
        finished = await interrupted(world, source, keyed_lock, readers)
        assert opened_under(world.layout.root) == []
        assert free(world.layout)
        assert source.under_way == 0
        assert await world.pull(world.worker(), source).whole() == DATA
        await world.quiet()
        assert world.holds(DATA)
        assert opened_under(world.layout.root) == []
        assert source.fetched_twice() == []
        assert source.given() == len(DATA)
        keyed_lock += 1
    assert keyed_lock > 20


async def test_stopped_before_the_first_turn(world):
    """Readers of a download that is stopped before it could begin learn of it at once, too."""
    worker = world.worker()
    reader = world.pull(worker, ScriptedSource(DATA))
    await worker.close()
    assert "shutting down" in str(await reader.ended_short())
    assert len(worker) == 0


async def test_stopped_while_the_partial_is_being_opened(world, monkeypatch):
    """A stop does not wait for a thread that hangs, and what that opens afterwards is closed again and leaves no file."""
    from mirror.download import partial

    begun, go = threading.Event(), threading.Event()
    real = partial.RangeLock

    def slow(descriptor):
        begun.set()
        go.wait(LIMIT)
        return real(descriptor)

    monkeypatch.setattr(partial, "RangeLock", slow)
    worker = world.worker()
    reader = world.pull(worker, ScriptedSource(DATA))
    assert await asyncio.to_thread(begun.wait, LIMIT)
    async with asyncio.timeout(LIMIT / 2):
        await worker.close()
    await reader.ended_short()
    go.set()
    world.executor.shutdown()
    assert opened_under(world.layout.root) == []
    assert world.partials() == []


async def test_stopped_while_a_thread_writes(world, monkeypatch):
    """A stop does not wait for a thread that hangs in a write, nor does it take file and lock from under it."""
    begun, go = threading.Event(), threading.Event()
    real = Partial.write

    def slow(self, offset, data):
        if offset == 0:
            begun.set()
            assert go.wait(LIMIT)
        real(self, offset, data)

    monkeypatch.setattr(Partial, "write", slow)
    worker = world.worker()
    reader = world.pull(worker, ScriptedSource(DATA))
    assert await asyncio.to_thread(begun.wait, LIMIT)
    async with asyncio.timeout(LIMIT / 2):
        await worker.close()
    await reader.ended_short()
    assert not free(world.layout)
    go.set()
    world.executor.shutdown()
    assert opened_under(world.layout.root) == []
    assert free(world.layout)
    assert world.received(DIGEST) > 0


async def test_stopped_while_it_is_committed(world, monkeypatch):
    """A commit that a thread is about when the download is stopped is done whole: the blob is held, and no map is left over."""
    begun, go, fsync = threading.Event(), threading.Event(), os.fsync

    def slow(descriptor):
        begun.set()
        assert go.wait(LIMIT)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", slow)
    worker = world.worker()
    reader = world.pull(worker, ScriptedSource(DATA))
    assert await reader.whole() == DATA
    assert await asyncio.to_thread(begun.wait, LIMIT)
    async with asyncio.timeout(LIMIT / 2):
        await worker.close()
    go.set()
    world.executor.shutdown()
    assert world.holds(DATA)
    assert world.partials() == []


async def test_closed_partial_is_abandoned_once(world):
    """What was closed touches no descriptor any more: it may be another file's by now."""
    partial = open_partial(world.layout, DIGEST)
    partial.close()
    with open(world.layout.partial(DIGEST), "r+b") as other:
        assert other.fileno() in (partial.descriptor, partial.descriptor + 1, partial.descriptor + 2)
        partial.abandon()
        os.fstat(other.fileno())
    assert world.partials() != []


async def test_readers_learn_of_the_stop(world):
    """Readers of a download that is stopped end short at once, with a cause."""
    source = ScriptedSource(DATA)
    gate, worker = source.gate(CHUNK), world.worker()
    readers = [world.pull(worker, source) for _ in range(3)]
    await gate.reached.wait()
    await worker.close()
    for reader in readers:
        assert "shutting down" in str(await reader.ended_short())
    assert source.under_way == 0
    assert world.results == []
