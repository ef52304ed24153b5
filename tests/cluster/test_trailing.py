"""A node dies that fetches a blob over several connections: the one that follows it has what came over each of them."""

import asyncio
import contextlib
import dataclasses
import os

import pytest

from mirror.core.pieces import CHUNK, Speed, Verdict
from mirror.core.trailing import is_news
from mirror.core.urgency import Urgency
from mirror.download.reader import Span, StreamingBody
from mirror.errors import UpstreamDisconnected
from tests.download.source import ScriptedSource
from tests.download.world import World, ingest_of
from tests.support.names import content
from tests.support.waiting import eventually

DATA = content(32 * CHUNK + 4321)
# A piece has four chunks: half a second of such a connection.
KNOWN = Speed(Verdict.PARALLEL, 8 * CHUNK, 0.01)
# Where the owner's four connections stand still.
HELD = [2 * CHUNK, 6 * CHUNK + 77, 10 * CHUNK, 13 * CHUNK]


class NodeSource(ScriptedSource):
    """Another node, as long as it lives; then upstream.

    Attributes:
        asked: what is known of its ranges, by each question for them.
        streams: the positions of the streams that were requested of the node.
        says: set once it answers for the first time.
    """

    origin = "node"

    def __init__(self, owner, says_ranges):
        super().__init__(DATA)
        self._owner, self._says_ranges = owner, says_ranges
        self.asked, self.streams = [], []
        self.says = asyncio.Event()
        self.killed = asyncio.Event()

    @property
    def ranges(self):
        return self._ranges

    async def _ranges(self, known):
        self.asked.append(set(known))
        await self.says.wait()
        if self._says_ranges:
            await eventually(lambda: self.killed.is_set() or is_news(ingest_of(self._owner).ranges(), known, len(DATA)), "news")
        return None if self.killed.is_set() or not self._says_ranges else ingest_of(self._owner).ranges()

    @contextlib.asynccontextmanager
    async def open(self, start, stop):
        if self.killed.is_set():
            async with super().open(start, stop) as stream:
                yield stream
        else:
            self.streams.append(start)
            body = StreamingBody(ingest_of(self._owner), Urgency.SYNC, only_stored=True)
            try:
                yield NodeStream(body, start, stop, self.killed)
            finally:
                await body.close()


class NodeStream:
    """What the node sends of a range, until it is killed."""

    is_partial = True
    size = len(DATA)

    def __init__(self, body, start, stop, killed):
        self.start, self._stop = start, stop or self.size
        self._body, self._killed = body, killed

    async def blocks(self):
        await self._body.sized()
        spans = self._body.spans(self.start, self._stop)
        dies = asyncio.create_task(self._killed.wait())
        try:
            while True:
                following = asyncio.ensure_future(anext(spans, None))
                await asyncio.wait([following, dies], return_when=asyncio.FIRST_COMPLETED)
                if dies.done():
                    following.cancel()
                    await asyncio.wait([following])
                    raise UpstreamDisconnected("the node has been killed").with_alternative()
                if (span := following.result()) is None:
                    return
                assert isinstance(span, Span)
                yield os.pread(span.file.fileno(), span.count, span.start)
        finally:
            dies.cancel()
            await spans.aclose()


@pytest.fixture
async def worlds(tmp_path):
    """The stores of two nodes, of which the first knows that several connections to upstream are faster than one."""
    both = [World(tmp_path / name) for name in ("owner", "follower")]
    for world in both:
        world.limits = dataclasses.replace(world.limits, parallel_from_bytes=CHUNK, look_ahead_bytes=64 * CHUNK)
    both[0].speeds.put(ScriptedSource.origin, KNOWN)
    yield both
    for world in both:
        await world.close()
        world.executor.shutdown()


async def pulled(worlds, says_ranges=True, connections=4, held=HELD, says_soon=True):
    """A pull of each node, while the owner's connections stand still; the sources and the gates of the owner's."""
    upstream = ScriptedSource(DATA)
    gates = [upstream.gate(position) for position in held]
    owner = worlds[0].pull(worlds[0].worker(), upstream)
    await asyncio.gather(*(gate.reached.wait() for gate in gates))
    await eventually(lambda: ingest_of(owner).received == upstream.given())
    worlds[1].limits = dataclasses.replace(worlds[1].limits, fetchers=connections)
    node = NodeSource(owner, says_ranges)
    if says_soon:
        node.says.set()
    return upstream, gates, node, worlds[1].pull(worlds[1].worker(), node)


async def test_little_is_fetched_twice(worlds):
    """The owner dies when the other node has caught up: upstream sends each byte once to both together."""
    upstream, _, node, reader = await pulled(worlds)
    await eventually(lambda: ingest_of(reader).received == upstream.given())
    assert upstream.given() == sum(position - 4 * number * CHUNK for number, position in enumerate(HELD))
    node.killed.set()
    assert await reader.whole() == DATA
    assert upstream.given() + node.given() <= 1.05 * len(DATA)


async def test_each_connection_goes_on_where_bytes_arrive(worlds):
    """The owner goes on with each of its pieces, and begins another: the other node needs no further connection for that."""
    upstream, held, node, reader = await pulled(worlds)
    await eventually(lambda: ingest_of(reader).received == upstream.given())
    gates = [upstream.gate(position) for position in (3 * CHUNK, 7 * CHUNK + 5, 11 * CHUNK, 18 * CHUNK)]
    for gate in held:
        gate.release()
    await asyncio.gather(*(gate.reached.wait() for gate in gates))
    await eventually(lambda: ingest_of(reader).received == upstream.given())
    assert len(node.streams) == 4
    node.killed.set()
    assert await reader.whole() == DATA
    assert upstream.given() + node.given() <= 1.05 * len(DATA)


async def test_node_of_an_older_version(worlds):
    """It does not say its ranges; the bytes are right all the same."""
    upstream, _, node, reader = await pulled(worlds, says_ranges=False)
    await eventually(lambda: ingest_of(reader).received >= HELD[0] and node.asked)
    node.killed.set()
    assert await reader.whole() == DATA
    assert upstream.given() + node.given() <= 2 * len(DATA)


async def test_nobody_is_asked_with_one_connection(worlds):
    """There is nothing to choose."""
    _, _, node, reader = await pulled(worlds, connections=1)
    await eventually(lambda: ingest_of(reader).received == HELD[0])
    node.killed.set()
    assert await reader.whole() == DATA
    assert node.asked == []


async def test_ranges_are_followed_as_they_begin(worlds):
    """In whatever order: a range in front of others is news as well."""
    upstream, held, node, reader = await pulled(worlds, held=[2 * CHUNK, 4 * CHUNK, 8 * CHUNK, 12 * CHUNK])
    await eventually(lambda: ingest_of(reader).received == 2 * CHUNK)
    for number in (3, 1, 2):
        gate = upstream.gate(4 * number * CHUNK + 100_000)
        held[number].release()
        await gate.reached.wait()
        await eventually(lambda: ingest_of(reader).received == upstream.given())
    assert node.asked[0] == set()
    assert {0, 12 * CHUNK} in node.asked
    node.killed.set()
    assert await reader.whole() == DATA
    assert upstream.given() + node.given() <= 1.05 * len(DATA)


async def test_only_what_the_node_has_is_requested(worlds):
    """Also where connections to nodes are known to be slow: it would fetch the rest over connections beside its own."""
    worlds[1].speeds.put(NodeSource.origin, KNOWN)
    _, _, node, reader = await pulled(worlds, held=[2 * CHUNK, 4 * CHUNK, 8 * CHUNK, 12 * CHUNK], says_soon=False)
    await eventually(lambda: ingest_of(reader).received == 2 * CHUNK and node.asked)
    node.says.set()
    await eventually(lambda: len(node.asked) == 2)
    assert node.streams == [0]
    node.killed.set()
    assert await reader.whole() == DATA
