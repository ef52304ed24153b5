"""The small pieces that asyncio lacks."""

import asyncio
import threading

import pytest

from mirror.aio import in_thread
from tests.support.waiting import LIMIT


async def test_thread_is_never_orphaned():
    """However often the one who waits for a thread is cancelled, it goes on only when the thread is done."""
    begun, release, ended = threading.Event(), threading.Event(), threading.Event()

    def work():
        begun.set()
        release.wait(LIMIT)
        ended.set()

    waiting = asyncio.create_task(in_thread(None, work))
    assert await asyncio.to_thread(begun.wait, LIMIT)
    for _ in range(3):
        waiting.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
    release.set()
    async with asyncio.timeout(LIMIT):
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert ended.is_set()
