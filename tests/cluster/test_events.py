"""Events of a cluster, without Redis."""

import asyncio

import structlog

from mirror.cluster.events import Events
from mirror.cluster.keys import Keys
from tests.support.waiting import eventually


class Down:
    """A link that counts the attempts to read."""

    calls = 0

    async def call(self, *_):
        self.calls += 1
        raise RuntimeError("a bug")


class Stream:
    """A link to a stream with these entries, none of which has been read."""

    def __init__(self, *entries):
        self._entries = [(f"{number}-0".encode(), words) for number, words in enumerate(entries, 1)]

    async def call(self, _, keys, read):
        number = int(read.partition("-")[0] or 0)
        return [b"read", 5000, self._entries[number:]]

    async def wait_for_entry(self, *_):
        await asyncio.Event().wait()


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


async def test_event_that_cannot_be_handled_holds_up_none(tmp_path):
    """Neither a bug nor an event of another version: those after it are handled, and it is not read again."""
    seen, position = [], tmp_path / "position"

    async def fails(event):
        seen.append(event.name)
        raise KeyError("scope")

    async def works(event):
        seen.append(event.name)

    found = events(Stream([b"kind", b"new"], [b"kind", b"odd"], [], [b"kind", b"good", b"odd"]))
    found.handlers |= {"new": fails, "odd": fails, "good": works}
    running = asyncio.create_task(found.run(str(tmp_path / "lock"), position))
    with structlog.testing.capture_logs() as lines:
        await eventually(lambda: position.exists() and position.read_text() == "4-0", "read")
    running.cancel()
    assert seen == ["1-0", "2-0", "4-0"]
    assert [(line["event"], line["entry"]) for line in lines] == [("event_not_handled", "1-0"), ("event_not_handled", "2-0")]
