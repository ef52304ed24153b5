"""From where a stream of a blob is opened: decisions about leases, nodes and upstream."""

import asyncio
import contextlib

import pytest
from prometheus_client import CollectorRegistry, Counter

from mirror.cluster import source as module
from mirror.cluster.lease import Alone, Follow, Own
from mirror.cluster.peer_protocol import PeerAbsent, PeerRefused
from mirror.cluster.source import ClusterSource
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.download.services import DownloadLimits
from mirror.download.source import BlobRange
from mirror.errors import ConnectionWithdrawn, NotFound, UpstreamDisconnected, UpstreamFailing, UpstreamUnreachable
from tests.support.waiting import LIMIT

DIGEST = Digest.of(b"x")
WANTED = BlobRange(Repository.parse("docker.io", "library/app"), DIGEST, 0, None)


class Stream:
    """A part of a blob of 100 bytes."""

    size, is_partial = 100, True

    def __init__(self, start=0, stop=None):
        self.start, self._stop = start, stop or self.size

    async def blocks(self):
        yield bytes(range(self.start, self._stop))


class World:
    """Leases that answer as the test says, and nodes that send, or fail as it says."""

    def __init__(self, *answers, **nodes):
        self.answers = list(answers)
        self.nodes = nodes
        self.events, self.waits = [], []
        self.is_owner = True
        self.has = {}
        self.lost = set()
        self.takeovers = Counter("takeovers", "", ["reason"], registry=CollectorRegistry())
        self.source = ClusterSource(self, self, self, lambda digest: True, self.takeovers)

    async def ask(self, digest, suspect, scope, *, may_own):
        self.events.append(f"ask {suspect}".strip())
        return self.answers.pop(0)

    async def fail(self, digest, error, scope):
        self.events.append("fail")

    async def release(self, digest):
        self.events.append("release")

    async def checksums(self, digest):
        return None

    async def confirm(self, digest):
        self.events.append("confirm")

    def owns(self, digest):
        return self.is_owner

    def avoids(self, node):
        return False

    def is_lost(self, node):
        return node in self.lost

    async def has_more(self, node, wanted, position):
        return False

    def note_poisoned(self, node):
        self.events.append(f"poisoned {node}")

    @contextlib.asynccontextmanager
    async def stream(self, node, wanted, wait_s):
        self.events.append(node)
        self.waits.append(wait_s)
        if self.nodes.get(node) is not None:
            raise self.nodes[node]
        yield Stream()

    @contextlib.asynccontextmanager
    async def blob(self, node, wanted, *, arrived):
        """What has arrived at a node: the ranges that the test says."""
        assert arrived
        for start, stop in self.has[node]:
            if start <= wanted.start < stop:
                if wanted.stop != wanted.start + 1:
                    self.events.append(f"{node} {wanted.start}-{stop}")
                yield Stream(wanted.start, stop)
                return
        absent = PeerAbsent("nothing")
        absent.first = min((start for start, _ in self.has[node] if start > wanted.start), default=None)
        raise absent

    async def ranges(self, node, wanted, known):
        self.events.append(f"ranges {node} {known}")
        return [(0, 10)]

    def scope(self, repository):
        return ""

    async def share(self, *_):
        self.events.append("share")

    async def adopt(self, *_):
        return True

    @contextlib.asynccontextmanager
    async def upstream(self, error=None, start=0, stop=None):
        self.events.append("upstream" if (start, stop) == (0, None) else f"upstream {start}-{stop or ''}")
        if error is not None:
            raise error
        yield Stream(start, stop)

    async def opened(self, during=None, error=None):
        async with self.source.open(WANTED, lambda start, stop: self.upstream(error, start, stop)):
            if during is not None:
                raise during


async def test_alone():
    world = World(Alone())
    await world.opened()
    assert world.events == ["ask", "upstream"]


async def test_stream_of_the_owner_grants_nothing():
    """It may come from a bucket: whoever asks upstream shares the grant."""
    world = World(Own("v"))
    await world.opened()
    assert world.events == ["ask", "upstream"]


async def test_ranges_are_those_of_the_node_that_sends():
    """The one whose stream was opened last; nobody is asked for a blob that comes from upstream."""
    world = World(Follow("v", ("a", "b")), Own("mine", is_new=True), a=PeerAbsent("nothing"), b=None)
    assert await world.source.ranges(WANTED, [7]) is None
    async with world.source.open(WANTED, world.upstream):
        assert await world.source.ranges(WANTED, [7]) == [(0, 10)]
        async with world.source.open(WANTED, lambda start, stop: world.upstream(None, start, stop)):
            assert await world.source.ranges(WANTED, [7]) is None
    assert await world.source.ranges(WANTED, [7]) is None
    assert world.events == ["ask", "a", "b", "ranges b [7]", "ask", "upstream"]


async def test_nodes_are_tried_in_order():
    world = World(Follow("v", ("parent", "owner")), parent=PeerAbsent("nothing"))
    await world.opened()
    assert world.events == ["ask", "parent", "owner"]


async def test_owner_with_another_secret_keeps_its_lease():
    """It lives, and fetches for those whose secret is right."""
    world = World(Follow("v", ("parent", "owner")), Own("w"), parent=PeerAbsent("nothing"), owner=PeerRefused("no"))
    await world.opened()
    assert world.events == ["ask", "parent", "owner", "upstream"]


async def test_lease_is_taken_only_after_all_nodes():
    failing = UpstreamDisconnected("cut")
    world = World(Follow("v", ("parent", "owner")), Own("w"), parent=failing, owner=failing)
    await world.opened()
    assert world.events == ["ask", "parent", "owner", "ask v", "upstream"]
    assert world.takeovers.labels("cut")._value.get() == 1


@pytest.mark.parametrize("is_silent", [True, False])
@pytest.mark.parametrize("is_lost", [True, False])
async def test_owner_that_is_dead(is_silent, is_lost):
    """A node that does not beat and could not be reached is not waited for; one that does either is asked."""
    world = World(Follow("v", ("parent", "owner"), is_silent), Own("w"), parent=PeerAbsent("nothing"))
    world.lost = {"owner"} if is_lost else set()
    await world.opened()
    takeover = ["ask v", "upstream"]
    assert world.events == ["ask", "parent", *(takeover if is_silent and is_lost else ["owner"])]


async def test_broken_stream_is_not_opened_from_the_same_node():
    """The next stream comes from the node above, without a change of the lease."""
    follow = Follow("v", ("parent", "owner"))
    world = World(follow, follow)
    with pytest.raises(UpstreamDisconnected) as caught:
        await world.opened(during=UpstreamDisconnected("cut"))
    assert caught.value.another
    await world.opened()
    assert world.events == ["ask", "parent", "ask", "owner"]


async def test_lease_is_taken_if_the_only_node_has_broken_off():
    follow = Follow("v", ("owner",))
    world = World(follow, follow, Own("w"))
    with pytest.raises(UpstreamDisconnected):
        await world.opened(during=UpstreamDisconnected("cut"))
    await world.opened()
    assert world.events == ["ask", "owner", "ask", "ask v", "upstream"]


async def test_failure_of_upstream_ends_the_lease():
    world = World(Own("v"))
    with pytest.raises(UpstreamFailing):
        await world.opened(error=UpstreamFailing("503"))
    assert world.events == ["ask", "upstream", "fail"]


async def test_refusal_of_upstream_frees_the_lease():
    world = World(Own("v"))
    with pytest.raises(NotFound):
        await world.opened(error=NotFound("404"))
    assert world.events == ["ask", "upstream", "release"]


async def test_failure_beside_an_open_stream_changes_nothing():
    """A further connection of a blob fails while the first one brings it."""
    world = World(Own("v"), Own("v"))
    async with world.source.open(WANTED, lambda start, stop: world.upstream()):
        with pytest.raises(UpstreamFailing):
            await world.opened(error=UpstreamFailing("503"))
    assert world.events == ["ask", "upstream", "ask", "upstream"]


async def test_senders_of_wrong_bytes_are_known():
    world = World(Follow("v", ("owner",)))
    assert not world.source.penalize(DIGEST)
    await world.opened()
    assert world.source.penalize(DIGEST)
    assert world.events[-1] == "poisoned owner"
    assert not world.source.penalize(DIGEST)


async def test_upstream_is_blamed_for_its_own_bytes():
    """What a node has sent of an earlier copy does not count."""
    world = World(Follow("v", ("owner",)), Own("w"))
    await world.opened()
    await world.opened()
    assert not world.source.penalize(DIGEST)


def taken_over(world, *others):
    """Make the world one in which the owner has failed, and this node has the lease now."""
    world.answers += [Follow("v", ("owner",)), Own("w", others=others)]
    world.nodes["owner"] = UpstreamDisconnected("cut")


async def read(world, error=None):
    async with world.source.open(WANTED, lambda start, stop: world.upstream(error, start, stop)) as stream:
        return b"".join([bytes(block) async for block in stream.blocks()])


async def test_new_owner_reads_from_upstream_only_what_nobody_has():
    """Bytes of the other followers first, holes between them by ranges."""
    world = World()
    taken_over(world, "a", "b")
    world.has = {"a": [(0, 20), (60, 70)], "b": [(10, 30)]}
    assert await read(world) == bytes(range(100))
    assert world.events[3:] == ["a 0-20", "b 20-30", "upstream 30-60", "a 60-70", "upstream 70-"]
    assert world.takeovers.labels("cut")._value.get() == 1
    # If the digest is wrong, those who have sent bytes are known.
    assert world.source.penalize(DIGEST)
    assert sorted(world.events[-2:]) == ["poisoned a", "poisoned b"]


async def test_node_that_fails_is_not_asked_again_for_what_it_had():
    world = World()
    taken_over(world, "a", "b")
    world.has = {"a": [(0, 50)], "b": [(20, 40)]}
    broken = Stream(0, 30)

    async def blocks():
        yield bytes(range(20))
        raise UpstreamDisconnected("cut")

    broken.blocks = blocks

    @contextlib.asynccontextmanager
    async def first(node, wanted, *, arrived):
        if wanted.stop == 1:
            async with blob(node, wanted, arrived=arrived) as stream:
                yield stream
            return
        world.blob = blob
        yield broken

    blob, world.blob = world.blob, first
    assert await read(world) == bytes(range(100))
    assert world.events[3:] == ["b 20-40", "upstream 40-"]


async def test_dead_nodes_are_asked_at_once():
    """Each would take the time limit of a connection before upstream is asked."""
    world, nodes = World(), [f"node-{number}" for number in range(16)]
    taken_over(world, *nodes)
    all_asked = asyncio.Barrier(len(nodes))

    @contextlib.asynccontextmanager
    async def dead(node, wanted, *, arrived):
        async with asyncio.timeout(LIMIT):
            await all_asked.wait()
        raise UpstreamUnreachable("no route")
        yield

    world.blob = dead
    assert await read(world) == bytes(range(100))
    assert world.events[3:] == ["upstream"]


async def test_another_connection_of_the_new_owner_counts_no_takeover():
    world = World()
    taken_over(world)
    await read(world)
    world.answers += [Follow("v", ("owner",)), Own("w", is_new=False)]
    await read(world)
    assert world.takeovers.labels("cut")._value.get() == 1


async def test_stream_of_a_lost_lease_ends():
    """The node follows the new owner then, and upstream sends nothing twice for longer than that."""
    world = World(Own("v"))
    async with world.source.open(WANTED, lambda start, stop: world.upstream()) as stream:
        blocks = stream.blocks()
        await anext(blocks)
        world.is_owner = False
        with pytest.raises(ConnectionWithdrawn):
            await anext(blocks)


@pytest.mark.parametrize("seconds", [0.5, 1.5])
async def test_lease_is_confirmed_after_a_silence(seconds, monkeypatch):
    """Other nodes may have taken it over meanwhile; upstream goes on where it has stopped."""
    loop = asyncio.get_running_loop()
    world, times = World(Own("v")), [0.0, seconds]
    async with world.source.open(WANTED, lambda start, stop: world.upstream()) as stream:
        blocks = stream.blocks()
        with monkeypatch.context() as patch:
            patch.setattr(loop, "time", lambda: times.pop(0) if times else seconds)
            await anext(blocks)
    assert ("confirm" in world.events) == (seconds > 1.0)


async def test_time_that_redis_takes_is_no_silence(monkeypatch):
    """Otherwise each block would wait for a Redis that hangs."""
    loop, now = asyncio.get_running_loop(), [0.0]

    class Parts(Stream):
        async def blocks(self):
            now[0] += 1.5
            yield bytes(50)
            yield bytes(50)

    class Slow(World):
        async def confirm(self, digest):
            await super().confirm(digest)
            now[0] += 1.5

    world = Slow(Own("v"))
    async with world.source.open(WANTED, lambda start, stop: contextlib.nullcontext(Parts())) as stream:
        with monkeypatch.context() as patch:
            patch.setattr(loop, "time", lambda: now[0])
            assert len([block async for block in stream.blocks()]) == 2
    assert world.events.count("confirm") == 1


async def lost(world):
    """Have another node take the lease of this one, which has a byte."""
    world.answers.append(Own("v"))
    world.is_owner = False
    async with world.source.open(WANTED, lambda start, stop: world.upstream()) as stream:
        with pytest.raises(ConnectionWithdrawn):
            async for _ in stream.blocks():
                pass
    world.is_owner = True
    world.events.clear()


async def test_lease_is_not_taken_back():
    """Two nodes that do not reach each other would take it from each other again and again."""
    world = World(other=UpstreamUnreachable("cut off"))
    await lost(world)
    world.answers.append(Follow("w", ("other",)))
    await world.opened()
    assert world.events == ["ask", "other", "upstream"]


async def test_lease_is_taken_from_a_node_that_has_sent_bytes_since():
    """It has been reached, and has failed then."""
    world = World()
    await lost(world)
    follow = Follow("w", ("other",))
    world.answers += [follow, follow, Own("x")]
    with pytest.raises(UpstreamDisconnected):
        await world.opened(during=UpstreamDisconnected("cut"))
    await world.opened()
    assert world.events == ["ask", "other", "ask", "ask w", "upstream"]


async def test_two_nodes_do_not_wait_for_each_other():
    """A node says that it has nothing to one from which it receives the blob."""
    world = World(Follow("v", ("parent", "owner")))
    async with world.source.open(WANTED, lambda start, stop: world.upstream()):
        assert world.source.reads_from(DIGEST, "parent")
        assert not world.source.reads_from(DIGEST, "owner")
    assert not world.source.reads_from(DIGEST, "parent")


async def test_senders_are_known_although_the_stream_has_broken_off():
    """What they have sent before stays in the partial file."""
    world = World()
    taken_over(world, "a")
    world.has = {"a": [(0, 20)]}
    with pytest.raises(UpstreamFailing):
        await read(world, UpstreamFailing("503"))
    assert world.source.penalize(DIGEST)
    assert world.events[-1] == "poisoned a"


async def test_nodes_share_one_time_limit(monkeypatch):
    """Once a node has used it up the next one is not asked, but upstream."""

    class Slow(World):
        @contextlib.asynccontextmanager
        async def stream(self, node, wanted, wait_s):
            monkeypatch.setattr(module, "_TIMEOUT_S", 0.0)
            self.events.append(node)
            raise UpstreamDisconnected("cut")
            yield

    world = Slow(Follow("v", ("parent", "owner")))
    await world.opened()
    assert world.events == ["ask", "parent", "upstream"]


async def test_wait_for_a_node_ends_before_clients_give_up():
    """Whatever the node says: a client waits for its first byte for a time that leaves some for upstream."""
    world = World(Follow("v", ("owner",)))
    await world.opened()
    assert 0 < world.waits[0] < DownloadLimits().first_byte_s
