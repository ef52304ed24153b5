"""Events of a cluster, without Redis."""

import asyncio

from mirror.cluster.events import Events
from mirror.cluster.keys import Keys
from tests.support.waiting import eventually


class Down:
    """A link that counts the attempts to read."""

    calls = 0

    async def call(self, *_):
        self.calls += 1
        raise RuntimeError("a bug")


def events(link):
    return Events(link, Keys("prod", lambda name: name), "me")


async def test_lock_that_cannot_be_opened(tmp_path):
    """The rest of the node goes on without events, and they are read once the disk can be written again."""
    running = asyncio.create_task(events(Down()).run(str(tmp_path / "missing" / "lock"), tmp_path / "position"))
    await asyncio.wait([running], timeout=0.05)
    assert not running.done()
    running.cancel()


async def test_bug_ends_nothing(tmp_path):
    link = Down()
    running = asyncio.create_task(events(link).run(str(tmp_path / "lock"), tmp_path / "position"))
    await eventually(lambda: link.calls == 2)
    assert not running.done()
    running.cancel()
