"""From where a stream of a blob is opened: decisions about leases, nodes and upstream."""

import contextlib

import pytest
from prometheus_client import CollectorRegistry, Counter

from mirror.cluster.lease import Alone, Follow, Own
from mirror.cluster.peers import BlobRange, PeerAbsent
from mirror.cluster.source import ClusterSource
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.errors import NotFound, UpstreamDisconnected, UpstreamFailing

DIGEST = Digest.of(b"x")
WANTED = BlobRange(Repository.parse("docker.io", "library/app"), DIGEST, 0, None)


class Stream:
    size, start, is_partial = 1, 0, True


class World:
    """Leases that answer as the test says, and nodes that send, or fail as it says."""

    def __init__(self, *answers, **nodes):
        self.answers = list(answers)
        self.nodes = nodes
        self.events = []
        self.takeovers = Counter("takeovers", "", ["reason"], registry=CollectorRegistry())
        self.source = ClusterSource(self, self, self, lambda digest: True, self.takeovers)

    async def ask(self, digest, suspect, scope, *, may_own):
        self.events.append(f"ask {suspect}".strip())
        return self.answers.pop(0)

    async def fail(self, digest, error, scope):
        self.events.append("fail")

    async def release(self, digest):
        self.events.append("release")

    def avoids(self, node):
        return False

    def note_poisoned(self, node):
        self.events.append(f"poisoned {node}")

    @contextlib.asynccontextmanager
    async def stream(self, node, wanted):
        self.events.append(node)
        if self.nodes.get(node) is not None:
            raise self.nodes[node]
        yield Stream()

    def scope(self, repository):
        return ""

    async def share(self, *_):
        self.events.append("share")

    async def adopt(self, *_):
        return True

    @contextlib.asynccontextmanager
    async def upstream(self, error=None):
        self.events.append("upstream")
        if error is not None:
            raise error
        yield Stream()

    async def opened(self, during=None, error=None):
        async with self.source.open(WANTED, lambda: self.upstream(error)):
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


async def test_nodes_are_tried_in_order():
    world = World(Follow("v", ("parent", "owner")), parent=PeerAbsent("nothing"))
    await world.opened()
    assert world.events == ["ask", "parent", "owner"]


async def test_lease_is_taken_only_after_all_nodes():
    failing = UpstreamDisconnected("cut")
    world = World(Follow("v", ("parent", "owner")), Own("w"), parent=failing, owner=failing)
    await world.opened()
    assert world.events == ["ask", "parent", "owner", "ask v", "upstream"]
    assert world.takeovers.labels("cut")._value.get() == 1


async def test_broken_stream_is_not_opened_from_the_same_node():
    """The next stream comes from the node above, without a change of the lease."""
    follow = Follow("v", ("parent", "owner"))
    world = World(follow, follow)
    with pytest.raises(UpstreamDisconnected) as caught:
        await world.opened(during=UpstreamDisconnected("cut"))
    assert caught.value.another
    await world.opened()
    assert world.events == ["ask", "parent", "ask", "owner"]


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
    async with world.source.open(WANTED, world.upstream):
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
