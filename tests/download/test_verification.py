"""Nothing wrong is ever completed."""

import asyncio
import threading

import pytest

from mirror.core.digest import Digest
from mirror.download.partial import CHUNK
from mirror.download.reader import StreamingBody
from mirror.download.verifier import Verifier
from mirror.errors import DigestMismatch, MirrorError, NotFound
from tests.download.source import ScriptedSource
from tests.download.world import HELD_BACK, ingest_of
from tests.support.names import content

DATA = content(2 * CHUNK + 12_345)
SMALL = content(HELD_BACK)


@pytest.fixture
def source():
    return ScriptedSource(DATA)


@pytest.mark.parametrize("at", [0, CHUNK, len(DATA) - 1])
async def test_corrupt_byte_completes_no_body(world, source, at):
    """Wherever one byte is wrong, every reader that had begun ends short of the last bytes, and the next pull is right."""
    source.corrupt(at)
    worker, gate = world.worker(), source.gate(len(DATA) - 1)
    readers = [world.pull(worker, source) for _ in range(3)]
    await gate.reached.wait()
    for reader in readers:
        await reader.has(len(DATA) - HELD_BACK)
    gate.release()
    for reader in readers:
        assert isinstance(await reader.ended_short(), DigestMismatch)
        assert len(reader.data) == len(DATA) - HELD_BACK
    assert await world.pull(worker, source).whole() == DATA
    assert await world.ended(2) == ["digest_mismatch", "committed"]
    assert world.holds(DATA)


async def test_exactly_one_retry(world, source):
    """A wrong digest is answered by one download from scratch, on the service's own account, and not by a third one."""
    worker, gate = world.worker(), source.gate(len(DATA) - 1)
    source.corrupt(5)
    reader = world.pull(worker, source)
    await gate.reached.wait()
    source.corrupt(7)
    gate.release()
    await reader.ended_short()
    assert await world.ended(2) == ["digest_mismatch"] * 2
    await world.quiet()
    assert source.opens == [(0, None)] * 2
    assert len(worker) == 0
    assert not world.holds(DATA)
    assert world.partials() == []
    assert await world.pull(worker, source).whole() == DATA


async def test_small_blob_is_retried_behind_the_scenes(world):
    """A small blob is held back whole, so its readers get the right bytes of the second try and notice nothing."""
    source = ScriptedSource(SMALL)
    source.corrupt(0)
    worker = world.worker()
    readers = [world.pull(worker, source) for _ in range(3)]
    for reader in readers:
        assert await reader.whole() == SMALL
    assert source.opens == [(0, None)] * 2
    assert worker.readers == 0


async def test_small_blob_wrong_twice_gives_an_error_and_no_byte(world):
    """When the second try is wrong, too, the failure arrives before any byte, so that it can become an error answer."""
    source = ScriptedSource(SMALL, block=len(SMALL))
    source.corrupt(0)
    gate = source.gate(1)
    worker = world.worker()
    reader = world.pull(worker, source)
    await gate.reached.wait()
    source.corrupt(0)
    gate.release()
    assert isinstance(await reader.ended_short(), DigestMismatch)
    assert not reader.data
    assert await world.ended(2) == ["digest_mismatch"] * 2


async def test_second_try_that_fails_otherwise(world):
    """If the second try finds the blob gone, that is what the readers are told."""
    source = ScriptedSource(SMALL)
    source.corrupt(0)
    gate = source.gate(len(SMALL) - 1)
    reader = world.pull(world.worker(), source)
    await gate.reached.wait()
    source.refuse(NotFound("gone"))
    gate.release()
    assert isinstance(await reader.ended_short(), NotFound)


async def test_small_blob_is_held_back_until_its_last_byte(world):
    """Not a byte of a small blob is given before all of it is there."""
    source = ScriptedSource(SMALL)
    gate = source.gate(len(SMALL) - 1)
    reader = world.pull(world.worker(), source)
    await gate.reached.wait()
    download = ingest_of(reader)
    assert download.received == len(SMALL) - 1
    assert not reader.data
    gate.release()
    assert await reader.whole() == SMALL


async def test_last_bytes_wait_for_the_verifier(world, source, monkeypatch):
    """Although every byte has arrived, the last ones are sent only when all of them have been hashed."""
    hold, begun = threading.Event(), threading.Event()
    real = Verifier._update

    def held(self, data):
        if self._partial.map.is_complete():
            begun.set()
            assert hold.wait(10)
        real(self, data)

    monkeypatch.setattr(Verifier, "_update", held)
    worker = world.worker()
    reader = world.pull(worker, source)
    await reader.has(len(DATA) - HELD_BACK)
    assert await asyncio.to_thread(begun.wait, 10)
    late = world.pull(worker, source)
    await late.has(len(DATA) - HELD_BACK)
    assert worker.find(Digest.of(DATA)).received == len(DATA)
    for one in (reader, late):
        assert len(one.data) == len(DATA) - HELD_BACK
    hold.set()
    assert await reader.whole() == await late.whole() == DATA


async def test_page_instead_of_a_blob(world):
    """If the first answer was something else of another size, no reader is given the blob cut to that size."""
    page = b"<html>please log in</html>"
    source = ScriptedSource(page)
    digest = Digest.of(SMALL)
    gate = source.gate(len(page) - 1)
    worker = world.worker()
    reader = world.pull(worker, source, digest=digest)
    await gate.reached.wait()
    # From now on upstream has the blob.
    source.data = source.data[:-1] + b">"
    second = ScriptedSource(SMALL)
    worker.find(digest).source = second
    gate.release()
    try:
        assert await reader.whole() == SMALL
    except MirrorError:
        assert not reader.data
    await world.ended(2)
    assert world.holds(SMALL)
    assert await world.pull(worker, second).whole() == SMALL


async def test_reader_between_headers_and_first_byte(world, source):
    """A reader that was told the size before the digest turned out wrong gets no byte afterwards."""
    source.corrupt(0)
    worker, gate = world.worker(), source.gate(len(DATA) - 1)
    body = StreamingBody(worker.start(Digest.of(DATA), source))
    await body.sized()
    await body.ready(0, len(DATA))
    await gate.reached.wait()
    gate.release()
    await world.ended()
    with pytest.raises(DigestMismatch):
        await anext(body.spans(0, len(DATA)))
    await body.close()


async def test_blob_that_upstream_says_is_empty(world):
    """No byte can be kept back of an empty body, so its beginning waits for the digest."""
    source = ScriptedSource(b"")
    with pytest.raises(DigestMismatch):
        await world.pull(world.worker(), source, digest=Digest.of(SMALL)).whole()
    assert await world.ended(2) == ["digest_mismatch"] * 2


async def test_empty_blob(world):
    """One that is empty by its digest, too, is one like others."""
    worker = world.worker()
    assert await world.pull(worker, ScriptedSource(b"")).whole() == b""
    assert await world.ended() == ["committed"]
