"""What nodes know of the objects of their bucket, at a real Redis; and the lease of the node that sweeps it."""

import time

import pytest

from mirror.cluster.keys import Keys
from mirror.cluster.leader import LeaderLease
from mirror.cluster.objects import SharedFacts
from mirror.core.digest import Digest
from mirror.errors import MirrorError
from mirror.objects.facts import Claim
from tests.e2e.harness.cluster import running_link

pytestmark = pytest.mark.e2e

DIGEST, OTHER = Digest.of(b"some blob"), Digest.of(b"another blob")


@pytest.fixture
def keys(request):
    return Keys(request.node.name, lambda name: name)


@pytest.fixture
def facts(link, keys):
    return SharedFacts(link, keys, lambda _: False)


async def test_one_node_claims_an_upload(facts, server, keys):
    """The others wait, and find afterwards that it is made; a node that has died keeps nobody waiting for long."""
    assert await facts.claim(DIGEST, 10) is Claim.MINE
    assert await facts.claim(DIGEST, 10) is Claim.WAIT
    assert await facts.claim(OTHER, 10) is Claim.MINE
    await facts.release(DIGEST, 10)
    assert await facts.claim(DIGEST, 10) is Claim.STORED
    # An object of another size is written again.
    assert await facts.claim(DIGEST, 11) is Claim.MINE
    await facts.release(OTHER, None)
    assert await facts.claim(OTHER, 10) is Claim.MINE
    until = float((await server.command("zscore", keys.todo, str(OTHER)))[0])
    assert 30_000 < until - time.time() * 1000 < 90_000
    await server.command("zadd", keys.todo, str(time.time() * 1000 - 1), str(OTHER))
    assert await facts.claim(OTHER, 10) is Claim.MINE


async def test_use_saves_an_object(facts):
    """So does a promise; and from the moment of the deletion on nobody promises or uploads it."""
    began = time.time()
    await facts.note_present(DIGEST, 10)
    await facts.note_uses({DIGEST: began - 100, OTHER: began - 100})
    await facts.note_uses({DIGEST: began - 500})
    assert [round(began - when) for when in await facts.uses([DIGEST, Digest.of(b"x"), OTHER])] == [100, round(began), 100]
    assert not await facts.condemn(DIGEST, began - 200)
    assert await facts.promise(DIGEST) == 10
    assert not await facts.condemn(DIGEST, began - 50)
    assert await facts.promise(OTHER) is None
    assert await facts.condemn(DIGEST, time.time() + 60)
    assert await facts.promise(DIGEST) is None
    assert await facts.claim(DIGEST, 10) is Claim.WAIT
    await facts.release(DIGEST, None)
    await facts.forget(DIGEST)
    assert await facts.uses([DIGEST]) == [0.0]
    assert await facts.claim(DIGEST, 10) is Claim.MINE
    # Nor is one deleted that is being uploaded.
    assert not await facts.condemn(DIGEST, time.time() + 60)


async def test_withdrawn_objects_are_promised_no_more(facts):
    digests = [Digest.of(bytes([number % 256, number // 256])) for number in range(1200)]
    await facts.note_uses(dict.fromkeys(digests, time.time()))
    for digest in digests[:3]:
        await facts.note_present(digest, 5)
    await facts.withdraw(digests)
    assert [await facts.promise(digest) for digest in digests[:3]] == [None] * 3
    assert all(await facts.uses(digests))


async def test_without_redis(keys):
    """Each node uploads what it owes; nothing is promised or deleted."""
    async with running_link("redis://127.0.0.1:1/0", 1.0) as link:
        facts = SharedFacts(link, keys, lambda _: False)
        assert await facts.claim(DIGEST, 1) is Claim.MINE
        assert not await facts.condemn(DIGEST, time.time())
        assert await facts.promise(DIGEST) is None
        assert await facts.total() is None
        for work in (facts.note_uses({DIGEST: 1.0}), facts.withdraw([DIGEST]), facts.release(DIGEST, 1), facts.share_total(1)):
            await work
        with pytest.raises(MirrorError):
            await facts.uses([DIGEST])


async def test_one_node_leads(link, keys, server):
    """Until its lease has expired, or it is lost."""
    first, second = (LeaderLease(link, keys.leader("sweep"), name) for name in ("a", "b"))
    assert not first.leads()
    for lease in (first, second, first):
        await lease.take()
    assert (first.leads(), second.leads()) == (True, False)
    await server.command("del", keys.leader("sweep"))
    for lease in (second, first):
        await lease.take()
    assert (first.leads(), second.leads()) == (False, True)
