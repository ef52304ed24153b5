"""Readers who start somewhere else than at the beginning, while the blob arrives."""

import asyncio
import dataclasses

import pytest

from mirror.core.digest import Digest
from mirror.download.chunk_map import ChunkMap
from mirror.download.partial import CHUNK
from mirror.errors import UpstreamDisconnected, UpstreamFailing, UpstreamProtocolError
from tests.download.source import ScriptedSource
from tests.download.world import HELD_BACK, fetcher_of, ingest_of, partial_of
from tests.support.files import opened_under
from tests.support.names import content
from tests.support.waiting import LIMIT

DATA = content(8 * CHUNK)
FAR = 6 * CHUNK


@pytest.fixture
def source():
    return ScriptedSource(DATA)


async def test_range_far_ahead_is_fetched_at_once(world, source):
    """A reader far ahead of what arrives gets bytes of a request of its own, and no byte is fetched twice for it."""
    worker, gate = world.worker(), source.gate(CHUNK // 2)
    whole = world.pull(worker, source)
    await gate.reached.wait()
    ahead = world.pull(worker, source, FAR + 10, FAR + 5000)
    assert await ahead.whole() == DATA[FAR + 10 : FAR + 5000]
    assert len(whole.data) <= CHUNK // 2
    gate.release()
    assert await whole.whole() == DATA
    assert source.opens == [(0, None), (FAR, None)]
    assert source.fetched_twice() == []
    assert source.given() == len(DATA)
    assert await world.ended() == ["committed"]


async def test_two_readers_at_one_far_place_share_a_filler(world, source):
    """However many wait there, one request fetches it."""
    worker, gate, far = world.worker(), source.gate(CHUNK // 2), source.gate(FAR + 100)
    world.pull(worker, source)
    await gate.reached.wait()
    readers = [world.pull(worker, source, FAR + i * 1000, FAR + i * 1000 + 1000) for i in range(6)]
    await far.reached.wait()
    far.release()
    for i, reader in enumerate(readers):
        assert await reader.whole() == DATA[FAR + i * 1000 : FAR + i * 1000 + 1000]
    assert source.opens == [(0, None), (FAR, None)]
    gate.release()
    await world.ended()


async def test_range_a_little_ahead_waits(world, source):
    """A reader who wants what will arrive soon anyway waits for it."""
    worker, gate = world.worker(), source.gate(CHUNK // 2)
    world.pull(worker, source)
    await gate.reached.wait()
    near = world.pull(worker, source, CHUNK, CHUNK + 10)
    later = world.pull(worker, source, 100, 200)
    assert await later.whole() == DATA[100:200]
    assert not near.data
    gate.release()
    assert await near.whole() == DATA[CHUNK : CHUNK + 10]
    await world.ended()
    assert source.opens == [(0, None)]


async def test_range_behind_is_there(world, source):
    """A reader who wants what has arrived already gets it while the download stands still."""
    worker, gate = world.worker(), source.gate(3 * CHUNK)
    world.pull(worker, source)
    await gate.reached.wait()
    assert await world.pull(worker, source, CHUNK - 5, 2 * CHUNK + 5).whole() == DATA[CHUNK - 5 : 2 * CHUNK + 5]
    gate.release()
    await world.ended()


async def test_range_on_a_cold_blob(world, source):
    """The first request may be for a range: it is served, and the whole blob is held afterwards."""
    reader = world.pull(world.worker(), source, FAR, FAR + 10)
    assert await reader.whole() == DATA[FAR : FAR + 10]
    assert await world.ended() == ["committed"]
    assert source.fetched_twice() == []


async def test_footer_of_a_cold_blob_waits_for_nothing_else(world, source):
    """A range that reaches into the end of the blob, as lazy pullers ask for first, comes while the rest is still on its way."""
    worker, gate = world.worker(), source.gate(CHUNK // 2)
    whole = world.pull(worker, source)
    await gate.reached.wait()
    tail = world.pull(worker, source, FAR, None)
    assert await tail.whole() == DATA[FAR:]
    assert len(whole.data) == CHUNK // 2
    gate.release()
    await world.ended()
    assert source.fetched_twice() == []


@pytest.mark.parametrize(("start", "held_back"), [(0, True), (1, False)])
async def test_only_a_whole_body_waits_for_the_digest(world, source, start, held_back):
    """Who asks for all in the form of a range is given the end when the digest has matched; who asks for less, at once."""
    worker, gate = world.worker(), source.gate(len(DATA) - 1)
    reader = world.pull(worker, source, start, len(DATA))
    await gate.reached.wait()
    await reader.has(len(DATA) - (HELD_BACK if held_back else 1) - start)
    assert len(reader.data) == len(DATA) - (HELD_BACK if held_back else 1) - start
    gate.release()
    assert await reader.whole() == DATA[start:]


async def test_waiting_far_ahead_costs_no_walk(world, source, monkeypatch):
    """When all connections that may be are at work, a reader far ahead looks through no map, however often it is woken."""
    world.limits = dataclasses.replace(world.limits, fetchers=1)
    worker, gate = world.worker(), source.gate(CHUNK // 2)
    world.pull(worker, source)
    await gate.reached.wait()
    partial = partial_of(worker.find(Digest.of(DATA)))
    walks = []
    monkeypatch.setattr(partial.map, "hole", lambda start: walks.append(start))
    monkeypatch.setattr(partial.map, "available", lambda position: walks.append(position) or position)
    for _ in range(100):
        fetcher_of(worker.find(Digest.of(DATA))).fetch_ahead(FAR)
    assert walks == []
    monkeypatch.undo()
    gate.release()
    await world.ended()


async def test_readers_are_woken_for_their_own_chunk(world, source):
    """Bytes that arrive elsewhere wake no reader: a thousand that wait far ahead cost nothing."""
    world.limits = dataclasses.replace(world.limits, fetchers=1)
    worker, gate = world.worker(), source.gate(100)
    world.pull(worker, source)
    await gate.reached.wait()
    partial = partial_of(worker.find(Digest.of(DATA)))
    waiting = asyncio.create_task(partial.changed(LIMIT, FAR))
    mine = asyncio.create_task(partial.changed(LIMIT, 0))
    await asyncio.sleep(0)
    gate.release()
    await mine
    assert not waiting.done()
    await world.ended()
    await waiting


async def test_never_more_connections_than_allowed(world, source):
    """When all allowed fillers are at work, a further far reader waits for its turn, and gets its bytes."""
    world.limits = dataclasses.replace(world.limits, fetchers=2)
    worker, gate, far = world.worker(), source.gate(100), source.gate(2 * CHUNK + 100)
    world.pull(worker, source)
    await gate.reached.wait()
    one = world.pull(worker, source, 2 * CHUNK, 3 * CHUNK)
    await far.reached.wait()
    two = world.pull(worker, source, FAR, FAR + 10)
    three = world.pull(worker, source, 4 * CHUNK, 4 * CHUNK + 10)
    assert await world.pull(worker, source, 0, 50).whole() == DATA[:50]
    assert len(source.opens) == 2
    far.release()
    assert await one.whole() == DATA[2 * CHUNK : 3 * CHUNK]
    assert await two.whole() == DATA[FAR : FAR + 10]
    assert await three.whole() == DATA[4 * CHUNK : 4 * CHUNK + 10]
    gate.release()
    await world.ended()
    assert source.fetched_twice() == []


@pytest.mark.parametrize("error", [UpstreamDisconnected("cut"), UpstreamFailing("500"), UpstreamProtocolError("no ranges")])
async def test_failed_fetch_ahead_is_made_good(world, source, error):
    """If the request for a far range fails, the reader waits until the download comes there, or another try succeeds."""
    worker, gate = world.worker(), source.gate(CHUNK // 2)
    source.refuse(error, start=FAR)
    world.pull(worker, source)
    await gate.reached.wait()
    ahead = world.pull(worker, source, FAR, FAR + 10)
    gate.release()
    assert await ahead.whole() == DATA[FAR : FAR + 10]
    assert await world.ended() == ["committed"]
    assert source.fetched_twice() == []


async def test_upstream_is_not_stormed_for_a_range_that_it_refuses(world, source, monkeypatch):
    """A refused range is asked for again after a pause, not at every block that arrives elsewhere meanwhile."""
    monkeypatch.setattr("mirror.download.fetcher.backoff", lambda *_, **__: 60.0)
    gates = [source.gate(place) for place in range(1000, CHUNK // 2, 20_000)]
    source.refuse(*[UpstreamFailing("500")] * 100, start=FAR)
    worker = world.worker()
    world.pull(worker, source)
    await gates[0].reached.wait()
    ahead = world.pull(worker, source, FAR, FAR + 10)
    for gate in gates:
        await gate.reached.wait()
        gate.release()
    assert await ahead.whole() == DATA[FAR : FAR + 10]
    assert source.opens.count((FAR, None)) == 1
    await world.ended()


async def test_readers_do_not_double_the_attempts(world, source, monkeypatch):
    """Between two attempts of the download its readers wait; they start no requests of their own for the same place."""
    source.fail_at(CHUNK // 2, *[UpstreamDisconnected("cut")] * 3)
    worker = world.worker()
    readers = [world.pull(worker, source) for _ in range(5)]
    for reader in readers:
        assert isinstance(await reader.ended_short(), UpstreamDisconnected)
    assert source.opens == [(0, None)] + [(CHUNK // 2, None)] * 2


async def test_waiting_where_bytes_arrive_is_cheap(world, source, monkeypatch):
    """Readers who wait for the next block do not look through the whole map at each one: large blobs have large maps."""
    looks = []
    hole = ChunkMap.hole
    monkeypatch.setattr(ChunkMap, "hole", lambda self, start: (looks.append(start), hole(self, start))[1])
    worker, gates = world.worker(), [source.gate(place) for place in range(10_000, CHUNK, 50_000)]
    readers = [world.pull(worker, source) for _ in range(10)]
    for gate in gates:
        await gate.reached.wait()
        for reader in readers:
            await reader.has(len(readers[0].data))
        gate.release()
    for reader in readers:
        assert await reader.whole() == DATA
    assert len(looks) < 10


async def test_hole_between_two_parts(world, source):
    """After a restart only the hole is asked for, from its first to its last byte."""
    worker, gate = world.worker(), source.gate(CHUNK // 2)
    reader = world.pull(worker, source)
    await gate.reached.wait()
    tail = world.pull(worker, source, FAR, None)
    await tail.has(len(DATA) - FAR - HELD_BACK)
    while world.received(Digest.of(DATA)) < CHUNK // 2 + len(DATA) - FAR:
        await partial_of(ingest_of(tail)).changed(0.01)
    await worker.close()
    assert await reader.ended_short()
    gate.release()
    assert await world.pull(world.worker(), source).whole() == DATA
    assert source.opens == [(0, None), (FAR, None), (CHUNK // 2, FAR)]
    assert source.fetched_twice() == []


async def test_end_in_the_moment_a_filler_is_wanted(world, source):
    """A filler that was called for and never began gives back its descriptor and its claim when the download ends."""
    worker, gate = world.worker(), source.gate(CHUNK // 2)
    world.pull(worker, source)
    await gate.reached.wait()
    before = opened_under(world.layout.root)
    fetcher = fetcher_of(worker.find(Digest.of(DATA)))
    fetcher.fetch_ahead(FAR)
    assert opened_under(world.layout.root) != before
    await fetcher.close()
    assert opened_under(world.layout.root) == before
    gate.release()
    await world.ended()


async def test_filler_wanted_after_the_end(world, source):
    """When its partial file gives way to another one nothing is begun any more that nobody would end."""
    worker, gate = world.worker(), source.gate(CHUNK // 2)
    world.pull(worker, source)
    await gate.reached.wait()
    before = opened_under(world.layout.root)
    fetcher = fetcher_of(worker.find(Digest.of(DATA)))
    await fetcher.close()
    fetcher.fetch_ahead(FAR)
    assert opened_under(world.layout.root) == before
    gate.release()
    await world.ended()
