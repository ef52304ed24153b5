"""Upstream breaks, and nobody notices: the download goes on from the broken byte."""

import dataclasses
import os
import threading

import pytest

from mirror.core.digest import Digest
from mirror.download.partial import CHUNK
from mirror.errors import (
    NotFound,
    UpstreamDisconnected,
    UpstreamError,
    UpstreamFailing,
    UpstreamProtocolError,
    UpstreamTimeout,
    UpstreamUnreachable,
)
from tests.download.source import ScriptedSource
from tests.support.names import content

DATA = content(3 * CHUNK + 12_345)
BREAK = len(DATA) * 7 // 10


@pytest.fixture
def source():
    return ScriptedSource(DATA)


@pytest.mark.parametrize("error", [UpstreamDisconnected("cut"), UpstreamTimeout("stalled")], ids=["cut", "stall"])
@pytest.mark.parametrize("at", [1, CHUNK - 1, CHUNK, CHUNK + 1, BREAK, len(DATA) - 1])
async def test_goes_on_at_exactly_the_broken_byte(world, source, error, at):
    """Wherever a stream breaks, the next request starts with the first byte that is missing, and readers see nothing of it."""
    source.fail_at(at, error)
    worker = world.worker()
    readers = [world.pull(worker, source) for _ in range(2)]
    for reader in readers:
        assert await reader.whole() == DATA
    assert source.opens == [(0, None), (at, None)]
    assert source.given() == len(DATA)
    assert world.resumes == [error.reason]
    assert await world.ended() == ["committed"]


async def test_breaks_with_progress_are_endured(world, source):
    """Any number of breaks is endured as long as each attempt brings something worth it."""
    places = range(CHUNK // 3, len(DATA), CHUNK // 3)
    for place in places:
        source.fail_at(place, UpstreamDisconnected("cut"))
    assert await world.pull(world.worker(), source).whole() == DATA
    assert source.opens == [(start, None) for start in (0, *places)]


async def test_breaks_without_progress_end_it(world, source):
    """After the allowed attempts in a row without progress it fails with the last cause; what came is kept for the next pull."""
    last = UpstreamDisconnected("the last one")
    source.fail_at(BREAK, UpstreamDisconnected("cut"), UpstreamDisconnected("cut"), last)
    worker = world.worker()
    reader = world.pull(worker, source)
    assert await reader.ended_short() is last
    assert reader.data == DATA[:BREAK]
    assert source.opens == [(0, None)] + [(BREAK, None)] * 2
    await world.quiet()
    assert world.received(Digest.of(DATA)) == BREAK
    assert await world.pull(worker, source).whole() == DATA
    assert source.opens[-1] == (BREAK, None)
    assert source.fetched_twice() == []


@pytest.mark.parametrize(
    "error",
    [
        UpstreamUnreachable("down"),
        UpstreamFailing("500"),
        UpstreamTimeout("no answer"),
        NotFound("404"),
        UpstreamProtocolError("page"),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_refused_resume_is_tried_again(world, source, error):
    """In mid-blob even an answer that would be final before the first byte is tried again."""
    source.fail_at(BREAK, UpstreamDisconnected("cut"))
    source.refuse(error, start=BREAK)
    assert await world.pull(world.worker(), source).whole() == DATA
    assert source.opens == [(0, None)] + [(BREAK, None)] * 2


async def test_another_size_after_a_resume_once(world, source):
    """An upstream that names another size in the middle is not believed at once: it is asked again."""
    source.fail_at(BREAK, UpstreamDisconnected("cut"))
    source.sizes = [len(DATA), len(DATA) + 1]
    assert await world.pull(world.worker(), source).whole() == DATA
    assert source.fetched_twice() == []


async def test_another_size_for_good(world, source):
    """If the first answer told a wrong size and upstream stays with another one, the reader ends short,

    and what was begun is thrown away: the next pull starts anew and gets the blob.
    """
    source.sizes = [len(DATA) + 1000]
    worker = world.worker()
    reader = world.pull(worker, source)
    source.fail_at(BREAK, UpstreamDisconnected("cut"))
    assert isinstance(await reader.ended_short(), UpstreamProtocolError)
    assert len(reader.data) <= BREAK
    assert await world.pull(worker, source).whole() == DATA
    await world.quiet()
    assert world.holds(DATA)


async def test_portal_pages_cost_nothing_that_has_arrived(world, source):
    """Answers that are shorter than what has arrived throw nothing away, however many agree: a portal's pages do."""
    source.fail_at(BREAK, UpstreamDisconnected("cut"))
    source.sizes = [len(DATA), *[5000] * 10]
    world.limits = dataclasses.replace(world.limits, attempts=6)
    assert isinstance(await world.pull(world.worker(), source).ended_short(), UpstreamProtocolError)
    await world.quiet()
    source.sizes = []
    assert await world.pull(world.worker(), source).whole() == DATA
    assert source.fetched_twice() == []


async def test_one_other_size_costs_nothing_that_has_arrived(world, source):
    """Nor does one answer with a larger size, between others that are broken otherwise."""
    source.fail_at(BREAK, UpstreamDisconnected("cut"), UpstreamDisconnected("cut"))
    source.sizes = [len(DATA), len(DATA) + 5]
    assert isinstance(await world.pull(world.worker(), source).ended_short(), UpstreamError)
    await world.quiet()
    assert await world.pull(world.worker(), source).whole() == DATA
    assert source.fetched_twice() == []


async def test_restart_asks_only_for_what_is_missing(world, source):
    """A partial of an earlier run is completed from where it ends, and served to its readers from its beginning."""
    gate, worker = source.gate(BREAK), world.worker()
    reader = world.pull(worker, source)
    await gate.reached.wait()
    await worker.close()
    await reader.ended_short()
    gate.release()
    assert world.received(Digest.of(DATA)) == BREAK
    again = world.pull(world.worker(), source)
    assert await again.whole() == DATA
    assert source.opens == [(0, None), (BREAK, None)]
    assert source.fetched_twice() == []
    assert world.resumes == ["restart"]


async def test_restart_between_last_byte_and_commit(world, source, monkeypatch):
    """A partial that only lacks its commit is verified and committed without any request to upstream."""
    rename = os.rename

    def broken(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "rename", broken)
    assert await world.pull(world.worker(), source).whole() == DATA
    assert await world.ended() == ["bypassed"]
    await world.quiet()
    monkeypatch.setattr(os, "rename", rename)
    assert await world.pull(world.worker(), source).whole() == DATA
    assert await world.ended(2) == ["bypassed", "committed"]
    assert source.opens == [(0, None)]


async def test_failed_flush_means_fetching_again(world, source, monkeypatch):
    """What the disk failed to take is gone, whatever the page cache still shows: the next pull fetches it anew."""
    fsync, failures = os.fsync, [OSError(5, "Input/output error")]

    def once(descriptor):
        if failures and "/partial/" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise failures.pop()
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", once)
    assert await world.pull(world.worker(), source).whole() == DATA
    assert await world.ended() == ["bypassed"]
    await world.quiet()
    assert world.partials() == []
    assert not world.holds(DATA)
    assert await world.pull(world.worker(), source).whole() == DATA
    assert await world.ended(2) == ["bypassed", "committed"]
    assert source.opens[-1] == (0, None)


async def test_disk_takes_meanwhile_what_has_arrived(world, source, monkeypatch):
    """Writing to the disk begins while the blob arrives, each part once and in a thread, so that the flush finds little to do."""
    parts = []

    def start(descriptor, position, length):
        assert threading.current_thread() is not threading.main_thread()
        assert os.fstat(descriptor).st_size == len(DATA)
        parts.append((position, position + length))

    monkeypatch.setattr("mirror.download.range_fetcher.start_write_back", start)
    monkeypatch.setattr("mirror.download.range_fetcher._WRITE_BACK_BYTES", CHUNK)
    assert await world.pull(world.worker(), source).whole() == DATA
    await world.quiet()
    ends = [stop for _, stop in parts]
    assert [start for start, _ in parts] == [0, *ends[:-1]]
    assert all(end % CHUNK == 0 for end in ends)
    assert ends


async def test_lying_map_is_found_out(world, source):
    """Bytes that the map vouches for but the disk lost (power loss) cost one download from scratch, and no wrong blob."""
    gate, worker = source.gate(BREAK), world.worker()
    reader = world.pull(worker, source)
    await gate.reached.wait()
    await worker.close()
    await reader.ended_short()
    gate.release()
    with open(world.layout.partial(Digest.of(DATA)), "r+b") as file:
        file.seek(CHUNK // 2)
        file.write(bytes(5000))
    victim = world.pull(world.worker(), source)
    await victim.ended_short()
    assert len(victim.data) < len(DATA)
    assert await world.ended(2) == ["digest_mismatch", "committed"]
    assert world.holds(DATA)
    assert source.opens == [(0, None), (BREAK, None), (0, None)]


@pytest.mark.parametrize("at", [0, 100, CHUNK])
async def test_answers_that_end_where_they_should_begin(world, source, at):
    """An upstream that gives nothing behind a byte, and calls that all there is, is not asked for it for ever."""
    source.ends = {at}
    worker = world.worker()
    reader = world.pull(worker, source)
    assert isinstance(await reader.ended_short(), UpstreamDisconnected)
    await world.quiet()
    assert len(source.opens) <= world.limits.attempts + 1
    assert world.results == ["failed"]
