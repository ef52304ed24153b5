"""One download, any number of readers, whatever they do."""

import os
import stat

import pytest

from mirror.core.digest import Digest
from mirror.download.partial import CHUNK
from mirror.download.reader import Span, StreamingBody
from mirror.errors import NotFound, UpstreamRateLimited, UpstreamTimeout, UpstreamUnreachable
from tests.download.source import ScriptedSource
from tests.download.world import HELD_BACK
from tests.support.files import opened_under
from tests.support.names import content

DATA = content(3 * CHUNK + 12_345)


@pytest.fixture
def source():
    return ScriptedSource(DATA)


@pytest.mark.parametrize(
    "size", [0, 1, HELD_BACK - 1, HELD_BACK, HELD_BACK + 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 3 * CHUNK + 7]
)
async def test_every_size(world, size):
    """A blob of any size arrives whole, is held, and leaves neither partial nor map."""
    source = ScriptedSource(content(size))
    reader = world.pull(world.worker(), source)
    assert await reader.whole() == source.data
    assert await world.ended() == ["committed"]
    assert world.holds(source.data)
    assert world.partials() == []
    assert source.opens == [(0, None)]
    assert source.given() == size


async def test_sha512(world, source):
    """A blob whose digest is a sha512 is verified by that."""
    digest = Digest.of(DATA, "sha512")
    assert await world.pull(world.worker(), source, digest=digest).whole() == DATA
    await world.ended()
    assert world.files.size(digest) == len(DATA)


async def test_held_blob_is_private(world, source):
    """A committed file is for the mirror's user only."""
    await world.pull(world.worker(), source).whole()
    await world.ended()
    assert stat.S_IMODE(os.stat(world.layout.blob(Digest.of(DATA))).st_mode) == 0o600


async def test_join_before_the_size_is_known(world, source):
    """Readers who come while upstream has not answered yet share the one request."""
    worker, gate = world.worker(), source.hold_answer()
    readers = [world.pull(worker, source)]
    await gate.reached.wait()
    readers += [world.pull(worker, source) for _ in range(5)]
    assert worker.find(Digest.of(DATA)).size is None
    gate.release()
    for reader in readers:
        assert await reader.whole() == DATA
    assert source.opens == [(0, None)]


@pytest.mark.parametrize("percent", [1, 50, 97])
async def test_join_in_the_middle(world, source, percent):
    """A late joiner gets at once all that has arrived, and the rest with everybody else; nothing is fetched again."""
    at = len(DATA) * percent // 100
    worker, gate = world.worker(), source.gate(at)
    early = world.pull(worker, source)
    await gate.reached.wait()
    await early.has(at)
    late = world.pull(worker, source)
    await late.has(at)
    assert late.data == early.data == DATA[:at]
    gate.release()
    assert await late.whole() == await early.whole() == DATA
    assert source.opens == [(0, None)]
    assert source.fetched_twice() == []


async def test_join_at_the_last_byte(world, source):
    """A joiner at more than 99 % gets everything but the bytes that wait for the digest, then those."""
    worker, gate = world.worker(), source.gate(len(DATA) - 1)
    early = world.pull(worker, source)
    await gate.reached.wait()
    late = world.pull(worker, source)
    await late.has(len(DATA) - HELD_BACK)
    gate.release()
    assert await late.whole() == await early.whole() == DATA


async def test_many_join_one_after_the_other(world, source):
    """Fifty readers that come at fifty places of the download cost one request and get the same bytes."""
    worker, readers = world.worker(), []
    places = [len(DATA) * i // 60 for i in range(1, 51)]
    gates = [source.gate(place) for place in places]
    for gate in gates:
        readers.append(world.pull(worker, source))
        await gate.reached.wait()
        gate.release()
    for reader in readers:
        assert await reader.whole() == DATA
    assert source.opens == [(0, None)]
    assert source.given() == len(DATA)


async def test_one_leaves_and_nobody_notices(world, source):
    """A reader that leaves at a tenth, the first one at that, changes nothing for the others."""
    worker, gate = world.worker(), source.gate(len(DATA) // 10)
    first, second = world.pull(worker, source), world.pull(worker, source)
    await first.has(len(DATA) // 10)
    download = worker.find(Digest.of(DATA))
    assert download.readers == worker.readers == 2
    await first.leave()
    assert download.readers == 1
    gate.release()
    assert await second.whole() == DATA
    assert source.opens == [(0, None)]


async def test_all_leave_and_the_blob_is_held_nevertheless(world, source):
    """A download belongs to nobody: without a reader it goes on to the commit."""
    worker, gate = world.worker(), source.gate(len(DATA) // 10)
    readers = [world.pull(worker, source) for _ in range(3)]
    await gate.reached.wait()
    for reader in readers:
        await reader.leave()
    assert worker.readers == 0
    gate.release()
    assert await world.ended() == ["committed"]
    assert world.holds(DATA)


async def test_all_leave_before_upstream_answers(world, source):
    """Even if nobody waits any more when the size becomes known."""
    worker, gate = world.worker(), source.hold_answer()
    reader = world.pull(worker, source)
    await gate.reached.wait()
    await reader.leave()
    gate.release()
    assert await world.ended() == ["committed"]


async def test_one_who_does_not_read_holds_up_nobody(world, source):
    """A reader whose client takes no byte waits alone; the download and the others go on to the end."""
    worker = world.worker()
    sleeper = world.pull(worker, source, stop=0)
    quick = world.pull(worker, source)
    assert await quick.whole() == DATA
    assert await world.ended() == ["committed"]
    await sleeper.whole()


async def test_open_reader_outlives_the_download(world, source):
    """A reader that began before the commit finishes after it, even if the blob has been deleted meanwhile."""
    worker, gate = world.worker(), source.gate(CHUNK)
    body = StreamingBody(worker.start(Digest.of(DATA), source))
    await body.ready(0, len(DATA))
    spans = body.spans(0, len(DATA))
    first = await anext(spans)
    data = os.pread(first.file.fileno(), first.count, 0)
    gate.release()
    await world.ended()
    await world.quiet()
    world.files.delete(Digest.of(DATA))
    async for span in spans:
        data += os.pread(span.file.fileno(), span.count, span.start)
    assert data == DATA
    await body.close()


async def test_second_pull_asks_nobody(world, source):
    """What is held is served from disk."""
    worker = world.worker()
    await world.pull(worker, source).whole()
    await world.ended()
    assert await world.pull(worker, source).whole() == DATA
    assert source.opens == [(0, None)]


@pytest.mark.parametrize(
    "error", [NotFound("404"), UpstreamTimeout("slow"), UpstreamRateLimited("429")], ids=lambda error: type(error).__name__
)
async def test_answer_that_ends_it_at_once(world, source, error):
    """Before the first byte, a no, a timeout or a rate limit is passed on after one request, to all who wait."""
    worker, gate = world.worker(), source.hold_answer()
    source.refuse(error)
    readers = [world.pull(worker, source) for _ in range(3)]
    await gate.reached.wait()
    gate.release()
    for reader in readers:
        assert await reader.ended_short() is error
    assert source.opens == [(0, None)]
    assert world.results == ["failed"]
    assert len(worker) == 0


async def test_connection_failure_is_tried_once_more(world, source):
    """Before the first byte an upstream that cannot be reached is asked twice, and no more."""
    source.refuse(UpstreamUnreachable("refused"), UpstreamUnreachable("refused"))
    worker = world.worker()
    assert isinstance(await world.pull(worker, source).ended_short(), UpstreamUnreachable)
    assert len(source.opens) == 2
    source.refuse(UpstreamUnreachable("refused"))
    assert await world.pull(worker, source).whole() == DATA


async def test_failed_download_leaves_no_files(world, source):
    """Blobs that upstream does not have leave nothing in the store, however many are asked for."""
    source.refuse(NotFound("404"))
    await world.pull(world.worker(), source).ended_short()
    await world.quiet()
    assert world.partials() == []


async def test_reading_takes_no_memory(world):
    """What a reader gets is a place in a file, never the bytes."""
    source = ScriptedSource(content(4 * CHUNK))
    reader = world.pull(world.worker(), source)
    await reader.whole()
    assert all(isinstance(span, Span) and span.count > 0 for span in reader.spans)


async def test_descriptors_are_given_back(world, source):
    """After the commit and the last reader no file of the store is open."""
    worker = world.worker()
    readers = [world.pull(worker, source) for _ in range(4)]
    for reader in readers:
        await reader.whole()
    await world.quiet()
    assert opened_under(world.layout.root) == []
    assert worker.readers == 0
    assert len(worker) == 0
