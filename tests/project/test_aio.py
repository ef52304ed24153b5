"""The small pieces that asyncio lacks."""

import asyncio
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mirror.aio import Shared, in_thread, on_descriptor, opened_in_thread
from tests.support.waiting import LIMIT


@pytest.fixture
def executor():
    """One thread."""
    with ThreadPoolExecutor(1) as executor:
        yield executor


class Hanging:
    """Work that hangs until it is let go."""

    def __init__(self):
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, *args):
        self.begun.set()
        assert self.go.wait(LIMIT)
        return args

    async def cancelled(self, coroutine):
        """Begin to wait for it, and be cancelled."""
        waiting = asyncio.create_task(coroutine)
        assert await asyncio.to_thread(self.begun.wait, LIMIT)
        waiting.cancel()
        async with asyncio.timeout(LIMIT / 2):
            with pytest.raises(asyncio.CancelledError):
                await waiting


async def test_cancelled_wait_is_over(executor):
    """Who waits for a thread and is cancelled goes on at once, although the thread hangs."""
    work = Hanging()
    await work.cancelled(in_thread(executor, work))
    work.go.set()


async def test_what_has_not_begun_never_does(executor):
    """Work that waits for a thread when its asker leaves is dropped."""
    first, done = Hanging(), []
    holding = asyncio.create_task(in_thread(executor, first))
    assert await asyncio.to_thread(first.begun.wait, LIMIT)
    second = asyncio.create_task(in_thread(executor, done.append, 1))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.wait([second])
    first.go.set()
    await holding
    assert await in_thread(executor, lambda: done) == []


async def test_descriptor_stays_open_for_the_thread(executor, tmp_path):
    """A descriptor may be closed by who waits; the thread has its own, which is closed after it."""
    work, inodes = Hanging(), []

    def look(descriptor):
        work()
        inodes.append((descriptor, os.fstat(descriptor).st_ino))

    with open(tmp_path / "file", "w") as file:
        await work.cancelled(on_descriptor(executor, file.fileno(), look))
    work.go.set()
    executor.shutdown()
    [(own, inode)] = inodes
    assert inode == (tmp_path / "file").stat().st_ino
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(own)


async def test_shared_is_closed_when_nobody_uses_it(executor):
    """Closed once, when its owner and all threads have let go; also by work that never began."""
    closed, work = [], Hanging()
    shared = Shared(lambda: closed.append(True))
    await work.cancelled(shared.in_thread(executor, work))
    waiting = asyncio.create_task(shared.in_thread(executor, work))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    shared.close()
    shared.close()
    assert not closed
    work.go.set()
    executor.shutdown()
    assert closed == [True]


async def test_opened_for_nobody_is_closed(executor):
    """What a thread has opened when nobody waits for it any more is closed."""
    closed, work = [], Hanging()
    await work.cancelled(opened_in_thread(executor, lambda: work("thing"), closed.append))
    work.go.set()
    executor.shutdown()
    assert closed == [("thing",)]
