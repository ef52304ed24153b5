"""KeyedLock of processes: one after the other, but nobody waits for long, and nothing depends on them."""

import asyncio

import pytest

from mirror.core.digest import Digest
from mirror.storage import keyed_lock
from mirror.storage.keyed_lock import KeyedLock

ONE, OTHER = Digest.of(b"one"), Digest.of(b"other")


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "lock")


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
    await asyncio.wait_for(task, 5)
    assert order == ["other", "first", "second"]


async def test_patience(path, monkeypatch):
    """A turn that does not end keeps nobody for ever."""
    monkeypatch.setattr(keyed_lock, "_PATIENCE", 0.05)
    async with asyncio.timeout(5), KeyedLock(path).turn(ONE), KeyedLock(path).turn(ONE):
        pass


async def test_cancelled_in_line(path):
    """Who leaves the line leaves no lock behind."""
    async with KeyedLock(path).turn(ONE):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), KeyedLock(path).turn(ONE):
                pytest.fail("two at a time")
    async with asyncio.timeout(2), KeyedLock(path).turn(ONE):
        pass


async def test_without_a_file(tmp_path):
    """Where no file can be opened the work is done all the same."""
    async with KeyedLock(str(tmp_path / "none" / "lock")).turn(ONE):
        pass
