"""The blocks of a blob's body."""

import asyncio
from types import SimpleNamespace

from multidict import CIMultiDict
from yarl import URL

from mirror.core.digest import Digest
from mirror.upstream.blob import UpstreamBlob
from tests.support.waiting import LIMIT


class PausingBody:
    """Hands out `buffer`, and then nothing until `event` is set."""

    def __init__(self, buffer):
        self.paused, self.event = asyncio.Event(), asyncio.Event()
        self._steps = [memoryview(buffer)]

    async def step(self):
        if self._steps:
            return self._steps.pop()
        self.paused.set()
        await self.event.wait()
        return memoryview(b"")


async def test_block_is_not_kept_while_upstream_pauses():
    """What has been read is released before the next block comes: many downloads from slow upstreams would keep megabytes."""
    buffer = bytearray(1000)
    body = PausingBody(buffer)
    response = SimpleNamespace(url=URL("https://upstream.test/"), status=200, headers=CIMultiDict(), content_length=len(buffer))
    blocks = UpstreamBlob(response, body, Digest.of(b"x"), 0, lambda _: None).blocks()
    assert len(await anext(blocks)) == len(buffer)
    following = asyncio.create_task(anext(blocks, None))
    async with asyncio.timeout(LIMIT):
        await body.paused.wait()
    # Raises BufferError if anything refers to its bytes.
    buffer.clear()
    body.event.set()
    assert await following is None
