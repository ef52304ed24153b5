"""Leases, turns and grants at a real Redis, as several nodes see them."""

import asyncio
import time
from dataclasses import replace

import pytest
import structlog

from mirror.cluster.grants import Grants
from mirror.cluster.identity import Identity
from mirror.cluster.keys import Keys
from mirror.cluster.lease import Alone, Follow, Leases, Own
from mirror.cluster.link import Script
from mirror.cluster.manifests import SharedManifests
from mirror.cluster.members import TTL_S, Members
from mirror.cluster.secret import ClusterSecret
from mirror.config.cluster import secrets_in
from mirror.core.digest import Digest
from mirror.core.hmac_token import InvalidToken, SignedRequest
from mirror.core.names import Repository
from mirror.errors import UpstreamBusy, UpstreamFailing
from mirror.metrics import Metrics

pytestmark = pytest.mark.e2e

DIGEST = Digest.of(b"some blob")
APP = Repository.parse("docker.io", "library/app")
FAN_OUT = 2
SCOPE = "docker.io~0"


@pytest.fixture
def keys(request):
    return Keys(request.node.name.replace("[", "-").replace("]", ""), lambda name: SCOPE)


@pytest.fixture
def node(link, keys):
    """Makes the leases of a node."""
    return lambda name, zone="": Leases(link, keys, Identity(name, zone), FAN_OUT)


class Files:
    """Says what a node holds."""

    def __init__(self, *held):
        self._held = held

    def size(self, digest):
        return 1 if digest in self._held else None


async def ask(leases, suspect="", *, may_own=True, scope=SCOPE):
    return await leases.ask(DIGEST, suspect, scope, may_own=may_own)


async def test_one_of_many_owns(node):
    answers = await asyncio.gather(*(ask(node(f"n{number}")) for number in range(50)))
    assert sum(isinstance(answer, Own) for answer in answers) == 1
    assert sum(isinstance(answer, Follow) for answer in answers) == 49


async def test_owner_keeps_its_lease(node):
    """A second connection of the same node, or another of its workers, fetches, too."""
    first = await ask(node("a"))
    again = await ask(node("a"))
    assert (again.value, again.is_new) == (first.value, False)


async def test_tree(node):
    """Each node is sent to its parent first, then to the parent's, and the owner last; nobody has more children than allowed."""
    names = [f"n{number}" for number in range(30)]
    answers = [await ask(node(name)) for name in names]
    parents = [answer.nodes[0] for answer in answers[1:]]
    assert max(parents.count(name) for name in names) == FAN_OUT
    for number, answer in enumerate(answers[1:], 1):
        chain = [(number - 1) // FAN_OUT]
        while chain[-1]:
            chain.append((chain[-1] - 1) // FAN_OUT)
        assert answer.nodes == tuple(names[one] for one in chain)


async def test_tree_of_zones(node):
    """The first of a zone streams from the owner, the others from those of their zone, the owner last."""
    await ask(node("a0", "a"))
    assert (await ask(node("b0", "b"))).nodes == ("a0",)
    assert (await ask(node("a1", "a"))).nodes == ("a0",)
    for number in range(1, 8):
        assert (await ask(node(f"b{number}", "b"))).nodes[0] == f"b{(number - 1) // FAN_OUT}"
    assert (await ask(node("b7", "b"))).nodes == ("b3", "b1", "b0", "a0")
    # The lists of the cluster have the heads of zones, and nodes without one.
    assert (await ask(node("c0", "c"))).nodes == ("a0",)
    assert (await ask(node("d0"))).nodes == ("b0", "a0")


async def test_new_owner_in_another_zone(node):
    """The zones keep their trees; what the others of its own zone have is asked for first."""
    await ask(node("a0", "a"))
    for name in ("b0", "b1", "b2"):
        seen = await ask(node(name, "b"))
    taken = await ask(node("b2", "b"), seen.value)
    assert taken.others == ("b0", "b1")
    assert (await ask(node("a0", "a"))).nodes == ("b2",)
    assert (await ask(node("b0", "b"))).nodes == ("b2",)


async def test_held_blob_comes_from_the_zone(node):
    owner = node("a0", "a")
    await ask(owner)
    await ask(node("b0", "b"))
    await owner.close(Files(DIGEST))
    assert (await ask(node("b1", "b"))).nodes == ("b0", "a0")


async def test_place_in_the_tree_stays(node):
    await ask(node("a"))
    first = await ask(node("b"))
    await ask(node("c"))
    assert await ask(node("b")) == first


async def test_one_of_those_who_suspect_takes_over(node):
    await ask(node("a"))
    seen = await ask(node("b"))
    answers = await asyncio.gather(*(ask(node(name), seen.value) for name in "bcdef"))
    (own,) = [answer for answer in answers if isinstance(answer, Own)]
    assert {answer.value for answer in answers if isinstance(answer, Follow)} == {own.value}
    # Who was suspected follows the new owner.
    assert isinstance(await ask(node("a")), Follow)


async def test_new_owner_learns_who_may_have_some_of_it(node):
    """All that have asked the one that has failed."""
    for name in "abcd":
        seen = await ask(node(name))
    assert (await ask(node("d"), seen.value)).others == ("b", "c")


async def test_old_suspicion_changes_nothing(node):
    first = await ask(node("a"))
    taken = await ask(node("b"), first.value)
    assert (await ask(node("c"), first.value)).value == taken.value


async def test_node_that_cannot_store_owns_nothing(node):
    assert await ask(node("a"), may_own=False) == Alone()
    own = await ask(node("b"))
    assert (await ask(node("a"), may_own=False)).nodes == ("b",)
    assert await ask(node("a"), own.value, may_own=False) == Alone()
    # And is nobody's parent.
    assert (await ask(node("c"))).nodes == ("b",)


async def test_node_that_finds_that_it_cannot_store_is_left_out(node):
    """It was the owner, or a parent; the blob is free, and the others keep their order."""
    await ask(node("a"))
    await ask(node("a"), may_own=False)
    assert isinstance(await ask(node("b")), Own)
    for name in "acd":
        await ask(node(name))
    assert (await ask(node("a"), may_own=False)).nodes == ("c", "b")
    assert (await ask(node("d"))).nodes == ("b",)
    assert (await ask(node("e"))).nodes == ("c", "b")


async def test_held_blob_is_found(node):
    owner = node("a")
    await ask(owner)
    await ask(node("b"))
    await owner.close(Files(DIGEST))
    answer = await ask(node("c"))
    assert isinstance(answer, Follow)
    assert set(answer.nodes) == {"a", "b"}
    # The node that held it gets it from the others when it has lost it.
    assert set((await ask(owner)).nodes) == {"b", "c"}


async def beats(link, keys, *, living=(), dead=()):
    """Have nodes beat now, or so long ago that they count as dead."""
    script = Script("redis.call('ZADD', KEYS[1], redis.call('TIME')[1] - ARGV[2], ARGV[1])")
    for names, age in ((living, 0), (dead, TTL_S + 1)):
        for name in names:
            await link.call(script, [keys.nodes], name, age)


async def test_dead_node_is_no_parent(node, link, keys):
    """It is left out, and comes back with its next beat; the owner is named all the same."""
    names = [f"n{number}" for number in range(6)]
    for name in names:
        await ask(node(name))
    assert (await ask(node("n5"))).nodes == ("n2", "n0")
    # Nobody has beaten: Redis may have lost it.
    await beats(link, keys, dead=["n0", "n2"])
    assert (await ask(node("n5"))).nodes == ("n2", "n0")
    await beats(link, keys, living=["n5"])
    assert (await ask(node("n5"))) == replace(await ask(node("n5")), nodes=("n0",), is_silent=True)
    await beats(link, keys, living=["n2"])
    assert (await ask(node("n5"))).nodes == ("n2", "n0")
    await beats(link, keys, living=["n0"])
    assert not (await ask(node("n5"))).is_silent


async def test_dead_node_has_no_part_of_a_blob(node, link, keys):
    """Neither of one that is held, nor for a new owner."""
    owner = node("a")
    await ask(owner)
    for name in ("b", "c", "d"):
        await ask(node(name))
    await beats(link, keys, living=["c", "d", "e"], dead=["a", "b"])
    assert (await owner.close(Files(DIGEST))) is None
    held = await ask(node("e"))
    assert (set(held.nodes), held.is_silent) == ({"c", "d", "a"}, True)
    taken = await ask(node("e"), held.value)
    assert set(taken.others) == {"c", "d"}


async def test_unfinished_blob_is_free_at_once(node):
    owner = node("a")
    await ask(owner)
    await owner.close(Files())
    assert isinstance(await ask(node("b")), Own)


async def test_lost_lease_settles_nothing(node):
    """An owner that was suspected meanwhile does not touch what belongs to another node."""
    owner = node("a")
    first = await ask(owner)
    taken = await ask(node("b"), first.value)
    await owner.close(Files(DIGEST))
    assert (await ask(node("c"))).value == taken.value


async def test_failure_counts_for_the_scope(node):
    owner = node("a")
    await ask(owner)
    await owner.fail(DIGEST, UpstreamFailing("upstream answers 503"), SCOPE)
    with pytest.raises(UpstreamFailing, match="another node has asked: upstream answers 503"):
        await ask(node("b"))
    # The node itself tries again, and one with other upstreams asks those.
    assert isinstance(await ask(owner), Own)
    await owner.fail(DIGEST, UpstreamFailing("upstream answers 503"), SCOPE)
    assert isinstance(await ask(node("c"), scope="docker.io~1"), Own)


async def test_failure_of_the_node_is_its_own(node):
    owner = node("a")
    await ask(owner)
    await owner.fail(DIGEST, UpstreamBusy("no connection was free"), SCOPE)
    assert isinstance(await ask(node("b")), Own)


@pytest.mark.parametrize("value", [b"", b"nonsense", b"own|", b"own|x", b"|||||", b"\xff|\xff|\xff|\xff", b"failed|t|other|"])
async def test_damaged_value_counts_as_none(value, node, link, keys):
    await link.call(Script("return redis.call('SET', KEYS[1], ARGV[1])"), [keys.lease(DIGEST)], value)
    assert isinstance(await ask(node("a")), Own)


async def test_value_of_another_type_is_no_lease(node, link, keys):
    await link.call(Script("return redis.call('RPUSH', KEYS[1], 'x')"), [keys.lease(DIGEST)])
    assert await ask(node("a")) == Alone()
    assert link.is_up


def shared(link, keys):
    """The manifests of a node that asks no other one for large ones."""
    return SharedManifests(link, keys, Identity("n"), pytest.fail)


async def test_turn_for_a_manifest(link, keys):
    """One of many fetches; the others get its bytes, verified."""
    raw = b'{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}'
    digest, fetched = Digest.of(raw), 0

    async def pull():
        nonlocal fetched
        async with shared(link, keys).turn(APP, digest) as turn:
            if turn.found is None:
                fetched += 1
                turn.fetched = "application/vnd.oci.image.index.v1+json", raw
                return raw
            return turn.found.raw

    assert await asyncio.gather(*(pull() for _ in range(20))) == [raw] * 20
    assert fetched == 1


async def test_failed_turn_is_repeated(link, keys):
    with pytest.raises(UpstreamFailing):
        async with shared(link, keys).turn(APP, DIGEST):
            raise UpstreamFailing("503")
    with pytest.raises(UpstreamFailing, match="another node has asked"):
        async with shared(link, keys).turn(APP, DIGEST):
            pytest.fail("it is not this node's turn")
    async with shared(link, replace(keys, scope=lambda name: "docker.io~1")).turn(APP, DIGEST) as turn:
        assert turn.found is None


async def test_wrong_manifest_is_not_taken(link, keys):
    """Neither other bytes, nor schema 1, whose digest is not that of its bytes."""
    store = Script("return redis.call('SET', KEYS[1], ARGV[1])")
    for value in (
        b"application/vnd.oci.image.index.v1+json\n{}",
        b'application/vnd.docker.distribution.manifest.v1+prettyjws\n{"schemaVersion": 1, "name": "x", "tag": "1"}',
        b"\xff\n",
        b"application/vnd.oci.image.index.v1+json\n@http://n:1",
        b"application/vnd.oci.image.index.v1+json\n@http://n:1\ndocker.io\n..",
        b"",
    ):
        await link.call(store, [keys.manifest(DIGEST)], value)
        async with shared(link, keys).turn(APP, DIGEST) as turn:
            assert turn.found is None


async def test_grants(link, keys):
    recorded = []
    one, other = Grants(link, keys, print), Grants(link, keys, lambda *grant: recorded.append(grant))
    assert not await other.adopt("blob", APP, DIGEST, 5)
    await one.share("blob", APP, DIGEST, 5)
    assert not await other.adopt("blob", APP, DIGEST, 6)
    assert not await other.adopt("manifest", APP, DIGEST, 5)
    assert not await other.adopt("blob", Repository.parse("docker.io", "library/other"), DIGEST, 5)
    assert await other.adopt("blob", APP, DIGEST, 5)
    assert recorded == [("blob", APP, DIGEST, 5)]
    await other.revoke("blob", APP, DIGEST)
    assert not await other.adopt("blob", APP, DIGEST, 5)


async def test_grant_that_redis_keeps(link, keys):
    """While Redis was away upstream has refused what it had granted: this node does not take that grant back from Redis."""
    recorded = []
    grants, other = Grants(link, keys, lambda *grant: recorded.append(grant)), Grants(link, keys, print)
    await grants.share("blob", APP, DIGEST, 5)
    link.is_up = False
    await grants.revoke("blob", APP, DIGEST)
    link.is_up = True
    assert not await grants.adopt("blob", APP, DIGEST, 5)
    assert not await other.adopt("blob", APP, DIGEST, 5)
    assert recorded == []
    await other.share("blob", APP, DIGEST, 5)
    assert await grants.adopt("blob", APP, DIGEST, 5)


async def test_wrong_clock_is_known(link, keys, tmp_path):
    """A node whose clock is an hour behind signs with the time of Redis, is counted, and says so once."""
    path = tmp_path / "secret"
    path.write_text("a secret of forty characters, more or less")
    metrics, request = Metrics(), SignedRequest("GET", "/x", "", "n")
    slow, right = (ClusterSecret(path, secrets_in(path.read_text())) for _ in range(2))
    members = Members(link, keys, Identity("slow"), slow, metrics)
    members.clock = lambda: time.time() - 3600
    with structlog.testing.capture_logs() as lines:
        await members.beat()
        await members.beat()
    assert metrics.cluster_clock_offset._value.get() == pytest.approx(3600, abs=60)
    assert [line["event"] for line in lines] == ["clock_differs"]
    assert slow.offset == pytest.approx(3600, abs=60)
    (member,) = await members.list()
    assert member.facts["clock"] == pytest.approx(3600, abs=60)
    # Its own clock would be the hour behind; here it is right, so the token is an hour ahead.
    with pytest.raises(InvalidToken, match="time differs"):
        right.check(request, slow.token(request))
