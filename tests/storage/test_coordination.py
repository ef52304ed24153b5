"""Locks between processes, and the wait for another process: bounded, and over as soon as the lock is free."""

import asyncio
import contextlib
import fcntl
import subprocess
import sys
import threading
import time

import pytest

from mirror.core.digest import Digest
from mirror.errors import StorageError
from mirror.storage import coordination
from mirror.storage.coordination import FileLock, KeyedLock, LeaderLock, wait, wait_in_thread
from tests.support.waiting import LIMIT

ONE, OTHER = Digest.of(b"one"), Digest.of(b"other")

HOLDER = """
import sys
from mirror.storage.coordination import LeaderLock
lock = LeaderLock(sys.argv[1])
print(lock.try_acquire(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "lock")


@pytest.fixture
def holder(path):
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "True\n"
    yield process
    process.kill()
    process.communicate(timeout=LIMIT)


async def test_next_leader(path, holder):
    """There is one leader at a time, and another process takes over when it dies."""
    with contextlib.closing(LeaderLock(path)) as lock:
        electing = asyncio.create_task(lock.elected())
        assert not lock.try_acquire()
        assert not electing.done()
        holder.kill()
        await asyncio.wait_for(electing, LIMIT)
        assert lock.try_acquire()


def test_wait_ends_in_time(path, holder):
    """A wait in a thread tries at least once, and ends at its bound or when it is over."""
    with contextlib.closing(FileLock(path)) as lock:
        attempts = []
        assert not wait_in_thread(lambda: attempts.append(1) or lock.try_acquire(), 0.0)
        assert len(attempts) == 1
        assert not wait_in_thread(lock.try_acquire, 0.05)
        over = iter([False, False, True])
        assert not wait_in_thread(lock.try_acquire, LIMIT, lambda: next(over))


def test_wait_ends_with_the_lock(path):
    """A wait in a thread ends when the holder frees the lock."""
    with contextlib.closing(FileLock(path)) as mine, contextlib.closing(FileLock(path)) as other:
        assert other.try_acquire()
        tried, acquired = threading.Event(), []

        def attempt():
            tried.set()
            return mine.try_acquire()

        waiting = threading.Thread(target=lambda: acquired.append(wait_in_thread(attempt, LIMIT)))
        waiting.start()
        assert tried.wait(LIMIT)
        assert acquired == []
        fcntl.flock(other.descriptor, fcntl.LOCK_UN)
        waiting.join(LIMIT)
        assert acquired == [True]


async def test_wait_on_the_event_loop():
    """A wait on the event loop leaves the loop free, and says whether it was in vain."""
    done = asyncio.Event()
    asyncio.get_running_loop().call_later(0.01, done.set)
    assert await wait(done.is_set, LIMIT)
    began = time.monotonic()
    assert not await wait(lambda: False, 0.03)
    assert time.monotonic() - began >= 0.03


def test_lock_that_cannot_be_opened(tmp_path):
    """A lock whose file cannot be opened is a failure of the store that names the file."""
    with pytest.raises(StorageError, match=str(tmp_path / "none")):
        FileLock(str(tmp_path / "none" / "lock"))


async def test_one_after_the_other(path):
    """Who comes second waits for the end of the first turn, and others for neither."""
    order, waits = [], asyncio.Event()

    async def second():
        waits.set()
        async with KeyedLock(path).turn(ONE):
            order.append("second")

    async with KeyedLock(path).turn(ONE):
        task = asyncio.create_task(second())
        await waits.wait()
        async with KeyedLock(path).turn(OTHER):
            order.append("other")
        await asyncio.sleep(0.05)
        order.append("first")
    await asyncio.wait_for(task, LIMIT)
    assert order == ["other", "first", "second"]


async def test_patience(path, monkeypatch):
    """A turn that does not end keeps nobody for ever."""
    monkeypatch.setattr(coordination, "_TURN_TIMEOUT_S", 0.05)
    async with asyncio.timeout(LIMIT), KeyedLock(path).turn(ONE), KeyedLock(path).turn(ONE):
        pass


async def test_cancelled_in_line(path):
    """Who leaves the line leaves no lock behind."""
    async with KeyedLock(path).turn(ONE):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), KeyedLock(path).turn(ONE):
                pytest.fail("two at a time")
    async with asyncio.timeout(LIMIT), KeyedLock(path).turn(ONE):
        pass


async def test_without_a_file(tmp_path):
    """Where no file can be opened the work is done all the same."""
    async with KeyedLock(str(tmp_path / "none" / "lock")).turn(ONE):
        pass
