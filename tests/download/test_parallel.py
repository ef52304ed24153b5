"""A large blob over several connections: every byte once, and one connection wherever more bring nothing."""

import asyncio
import dataclasses
import errno
import fcntl
import os

import pytest

from mirror.core.digest import Digest
from mirror.core.pieces import Speed, Verdict
from mirror.download.lanes import Lanes
from mirror.download.partial import CHUNK
from mirror.errors import (
    AccessDenied,
    ConnectionWithdrawn,
    DigestMismatch,
    UpstreamBusy,
    UpstreamDisconnected,
    UpstreamRateLimited,
    UpstreamSizeChanged,
)
from mirror.storage import coordination
from tests.download.source import ScriptedSource
from tests.support.files import opened_under
from tests.support.names import content
from tests.support.waiting import SOON, eventually

DATA = content(24 * CHUNK + 4321)
# A piece has two chunks: half a second of such a connection.
KNOWN = Speed(Verdict.PARALLEL, 4 * CHUNK, 0.01)


@pytest.fixture
def source():
    return ScriptedSource(DATA)


@pytest.fixture
def parallel(world, source):
    """A world in which several connections to the source are known to bring more than one."""
    world.limits = dataclasses.replace(world.limits, parallel_from_bytes=CHUNK, look_ahead_bytes=64 * CHUNK)
    world.speeds.put(source.origin, KNOWN)
    return world


async def begun(world, source):
    """A pull whose first connection stands still, so that the others are needed; returns its gate and its reader."""
    gate = source.gate(CHUNK // 2)
    reader = world.pull(world.worker(), source)
    await gate.reached.wait()
    return gate, reader


def pieces(source):
    """The pieces that further connections requested, in order."""
    return [(start, stop) for start, stop in source.opens if start]


async def test_pieces_are_fetched_once_and_in_order(parallel, source):
    """While the first connection stands still the others fetch everything behind its piece, in order."""
    gate, reader = await begun(parallel, source)
    await eventually(lambda: source.given() >= len(DATA) - 4 * CHUNK)
    gate.release()
    assert await reader.whole() == DATA
    assert await parallel.ended() == ["committed"]
    assert source.fetched_twice() == []
    assert source.given() == len(DATA)
    starts = [start for start, _ in pieces(source)]
    assert starts[:3] == sorted(starts[:3])
    assert all(start % CHUNK == 0 for start in starts)


async def test_first_connection_can_be_used_again(parallel, source):
    """Where several connections are known to be faster, the first request, too, ends where its piece does."""
    gate, reader = await begun(parallel, source)
    await eventually(lambda: source.given() >= 12 * CHUNK)
    gate.release()
    assert await reader.whole() == DATA
    assert source.opens[0] == (0, KNOWN.piece_length)
    assert source.fetched_twice() == []


async def test_first_request_where_one_connection_is_enough(parallel, source):
    """It is for the whole blob, and is the only one."""
    parallel.speeds.put(source.origin, dataclasses.replace(KNOWN, verdict=Verdict.SINGLE))
    assert await parallel.pull(parallel.worker(), source).whole() == DATA
    assert source.opens == [(0, None)]


async def test_refused_end_of_the_first_piece(parallel, source):
    """If the first request fails, the next one is for the whole blob."""
    source.refuse(UpstreamSizeChanged("416"), start=0)
    assert await parallel.pull(parallel.worker(), source).whole() == DATA
    assert source.opens[:2] == [(0, KNOWN.piece_length), (0, None)]


class NodeSource(ScriptedSource):
    """Another node turns out to send the blob."""

    @property
    def origin(self):
        return "node" if self.opens else "upstream"


async def test_speed_is_that_of_who_sends_the_blob(parallel):
    """What is known of upstream says nothing about another node, and the other way round."""
    source = NodeSource(DATA)
    parallel.speeds.put("node", Speed(Verdict.SINGLE))
    assert await parallel.pull(parallel.worker(), source).whole() == DATA
    assert await parallel.ended() == ["committed"]
    assert source.most_under_way == 1
    assert parallel.speeds.get("upstream") is KNOWN


@pytest.mark.parametrize("failing", ["lock", "descriptor"])
async def test_no_lock_for_a_further_connection(parallel, source, failing, monkeypatch):
    """If the kernel refuses the lock of a piece, or a descriptor for it, the connections go on as soon as it gives them."""
    monkeypatch.setattr("mirror.download.lanes._PAUSE_S", 0.01)
    module, name = {"lock": (fcntl, "fcntl"), "descriptor": (os, "open")}[failing]
    real, refused = getattr(module, name), []

    def refuse(file, *args):
        if failing == "lock":
            kind, _, start, *_ = coordination._FLOCK.unpack(args[1])
            is_further = kind == fcntl.F_WRLCK and CHUNK <= start < len(DATA)
        else:
            # The first connection has its own before it asks the source.
            is_further = source.opens and str(file).startswith("/proc/self/fd/") and args[0] & os.O_RDWR
        if is_further and len(refused) < 2:
            refused.append(args)
            raise OSError(errno.ENOLCK, "none left")
        return real(file, *args)

    monkeypatch.setattr(module, name, refuse)
    gate, reader = await begun(parallel, source)
    await eventually(lambda: source.given() >= len(DATA) - 4 * CHUNK, limit=SOON)
    assert len(refused) == 2
    gate.release()
    assert await reader.whole() == DATA
    assert await parallel.ended() == ["committed"]
    assert source.fetched_twice() == []


async def test_so_many_connections_at_once(parallel, source):
    """A blob has at most as many connections as are configured, the first one included."""
    gates = [source.gate(at * CHUNK + 100) for at in range(2, 24)]
    gate, reader = await begun(parallel, source)
    await eventually(lambda: source.under_way == parallel.limits.fetchers)
    for further in (gate, *gates):
        further.release()
    assert await reader.whole() == DATA
    assert source.most_under_way == parallel.limits.fetchers


@pytest.mark.parametrize("refusal", [AccessDenied("403"), UpstreamRateLimited("429")])
async def test_refused_further_connection(parallel, source, refusal):
    """If upstream refuses a further connection the blob comes over the first one, and so does the next blob."""
    # The first piece ends at the second or third chunk, by what has arrived when the others are handed out.
    for chunk in range(2, 8):
        source.refuse(refusal, start=chunk * CHUNK)
    gate, reader = await begun(parallel, source)
    await eventually(lambda: parallel.speeds.get(source.origin).verdict is Verdict.SINGLE)
    gate.release()
    assert await reader.whole() == DATA
    assert source.fetched_twice() == []
    assert await parallel.ended() == ["committed"]


async def test_upstream_that_ignores_ranges(parallel, source):
    """If upstream sends the whole blob for a range nothing of that is read, and the first connection fetches it all."""
    source.ignores_ranges = True
    gate, reader = await begun(parallel, source)
    await eventually(lambda: parallel.speeds.get(source.origin).verdict is Verdict.SINGLE)
    gate.release()
    assert await reader.whole() == DATA
    assert source.fetched_twice() == []


@pytest.mark.parametrize(
    "error", [UpstreamDisconnected("cut"), ConnectionWithdrawn("needed elsewhere"), UpstreamBusy("none is free")]
)
async def test_further_connection_that_breaks(parallel, source, error):
    """What a broken connection leaves missing another one fetches, from the byte where it broke."""
    source.fail_at(4 * CHUNK + 70_000, error)
    gate, reader = await begun(parallel, source)
    await eventually(lambda: source.given() >= 12 * CHUNK)
    gate.release()
    assert await reader.whole() == DATA
    assert source.fetched_twice() == []
    assert await parallel.ended() == ["committed"]


async def test_first_connection_that_breaks(parallel, source):
    """If the first connection breaks its piece is taken up again, while the others go on."""
    source.fail_at(CHUNK, UpstreamDisconnected("cut"))
    gate, reader = await begun(parallel, source)
    await eventually(lambda: len(pieces(source)) >= 3)
    gate.release()
    assert await reader.whole() == DATA
    assert source.fetched_twice() == []


async def test_wrong_byte_of_a_further_connection(parallel, source):
    """A byte that a further connection brought wrong is caught by the digest, and the blob is fetched again."""
    source.corrupt(5 * CHUNK)
    gate, reader = await begun(parallel, source)
    gate.release()
    assert isinstance(await reader.ended_short(), DigestMismatch)
    assert await parallel.ended(2) == ["digest_mismatch", "committed"]
    assert parallel.holds(DATA)


async def test_reader_of_another_process(parallel, source):
    """A process that follows reads the blob as it comes over several connections, and fetches nothing itself."""
    gate, reader = await begun(parallel, source)
    follower = parallel.pull(parallel.worker(), source)
    await eventually(lambda: source.given() >= 10 * CHUNK)
    gate.release()
    assert await reader.whole() == await follower.whole() == DATA
    assert source.fetched_twice() == []


async def test_holes_are_fetched_after_a_restart(parallel, source):
    """An ingest that ended with holes between its pieces is taken up by another process, which fetches only these."""
    worker = parallel.worker()
    gate, far = source.gate(CHUNK // 2), source.gate(6 * CHUNK)
    reader = parallel.pull(worker, source)
    await asyncio.gather(gate.reached.wait(), far.reached.wait())
    await eventually(lambda: source.given() >= 16 * CHUNK)
    await worker.close()
    await reader.ended_short()
    # Threads may be at work on the files still.
    await eventually(lambda: not opened_under(parallel.layout.root))
    gate.release()
    far.release()
    assert await parallel.pull(parallel.worker(), source).whole() == DATA
    # A block that each connection had in hand is lost.
    assert source.given() <= len(DATA) + parallel.limits.fetchers * source.block


async def test_cancelled_again_while_connections_end(parallel, source, monkeypatch):
    """A second cancellation while the further connections are being ended leaves none of them behind."""
    closing, go_on, close = asyncio.Event(), asyncio.Event(), Lanes.close

    async def held_up(lanes):
        closing.set()
        await go_on.wait()
        await close(lanes)

    monkeypatch.setattr(Lanes, "close", held_up)
    gates = [source.gate(at * CHUNK + 100) for at in range(2, 24)]
    worker, gate = parallel.worker(), source.gate(CHUNK // 2)
    reader = parallel.pull(worker, source)
    await gate.reached.wait()
    await eventually(lambda: source.under_way == parallel.limits.fetchers)
    ingest = worker.find(Digest.of(DATA))
    ingest.stop()
    await closing.wait()
    ingest.task.cancel()
    # A turn in which the cancellation arrives.
    await asyncio.sleep(0)
    go_on.set()
    await reader.ended_short()
    assert source.under_way == 0
    for held in (gate, *gates):
        held.release()
    await eventually(lambda: not opened_under(parallel.layout.root))


async def test_small_blob_has_one_connection(parallel, source):
    """Below the configured size nothing is measured or tried."""
    source.named = len(DATA)
    parallel.limits = dataclasses.replace(parallel.limits, parallel_from_bytes=len(DATA) + 1)
    gate, reader = await begun(parallel, source)
    gate.release()
    assert await reader.whole() == DATA
    assert source.opens == [(0, None)]
