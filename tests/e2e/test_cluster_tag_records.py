"""What nodes know together, at a real Redis: records of tags and refusals, as several nodes see them."""

import asyncio
import time

import pytest

from mirror.cluster import turns
from mirror.cluster.link import Script
from mirror.cluster.refusals import Refusals
from mirror.cluster.tags import SharedTag, SharedTags
from mirror.core.digest import Digest
from mirror.core.names import Repository, Tag
from mirror.errors import AccessDenied, NotFound, UpstreamBusy, UpstreamFailing
from tests.e2e.test_cluster_lease import keys  # noqa: F401 - fixtures
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

APP = Repository.parse("docker.io", "library/app")
ONE = Tag.parse("1")
OLD, NEW = Digest.of(b"old"), Digest.of(b"new")
TYPE = "application/vnd.oci.image.index.v1+json"
HOUR = 3600.0


@pytest.fixture
def tags(link, keys):  # noqa: F811
    """Makes the tag records of a node."""
    return lambda name: SharedTags(link, keys, name)


async def check(shared, digest, ttl=HOUR, since=0.0, age=0.0):
    """Check a tag, with a certain answer if it is this node's turn; whether it was not."""
    async with shared.turn(APP, ONE, ttl, since) as turn:
        if turn.found is None:
            turn.learn(digest, TYPE, 7, time.time() - age)
            return None
        return turn.found


async def test_one_of_many_checks(tags, link, monkeypatch):
    """Those who wait get its answer, also if it does not count for any later request."""
    began, end, checks, asked = asyncio.Event(), asyncio.Event(), 0, set()
    call = link.call

    async def counted(script, keys, *arguments):  # noqa: F811
        answer = await call(script, keys, *arguments)
        # The first argument of a call for a turn is who asks.
        asked.update(arguments[:1])
        return answer

    async def ask(name):
        nonlocal checks
        async with tags(name).turn(APP, ONE, 0.0, 0.0) as turn:
            if turn.found is None:
                checks += 1
                began.set()
                await end.wait()
                turn.learn(NEW, TYPE, 7, time.time())
                return NEW
            return turn.found.digest

    first = asyncio.create_task(ask("a"))
    await began.wait()
    monkeypatch.setattr(link, "call", counted)
    others = [asyncio.create_task(ask(f"n{number}")) for number in range(20)]
    await eventually(lambda: len(asked) == len(others), "the first call of each")
    end.set()
    assert await asyncio.gather(first, *others) == [NEW] * 21
    assert checks == 1
    assert await check(tags("b"), NEW, ttl=0.0) is None


async def test_check_counts_for_its_ttl(tags):
    assert await check(tags("a"), OLD, age=100.0) is None
    found = await check(tags("b"), NEW, ttl=101.0)
    assert (found.digest, found.media_type, found.size) == (OLD, TYPE, 7)
    assert found.checked == pytest.approx(time.time() - 100, abs=1.0)
    assert await check(tags("b"), NEW, ttl=99.0) is None


async def test_check_from_before_a_purge_does_not_count(tags):
    now = time.time()
    assert await check(tags("a"), OLD, age=100.0) is None
    assert await check(tags("b"), NEW, since=now - 99) is None
    assert (await check(tags("b"), OLD, since=now - 99)).digest == NEW


async def test_later_check_stays(tags):
    """A check that took long does not replace what was learned meanwhile."""
    slow = tags("slow").turn(APP, ONE, 0.0, 0.0)
    turn = await slow.__aenter__()
    turn.learn(OLD, TYPE, 7, time.time() - 100)
    await tags("fast").put(APP, ONE, learned(NEW))
    await slow.__aexit__(None, None, None)
    assert (await tags("c").find(APP, ONE)).digest == NEW


def learned(digest):
    return SharedTag(digest, TYPE, 7, time.time())


async def test_failure_counts_for_a_moment(tags):
    with pytest.raises(UpstreamFailing):
        async with tags("a").turn(APP, ONE, HOUR, 0.0):
            raise UpstreamFailing("503")
    with pytest.raises(UpstreamFailing, match="another node has asked: 503"):
        async with tags("b").turn(APP, ONE, HOUR, 0.0):
            pytest.fail("it is not this node's turn")


async def test_failure_of_the_node_is_its_own(tags):
    with pytest.raises(UpstreamBusy):
        async with tags("a").turn(APP, ONE, HOUR, 0.0):
            raise UpstreamBusy("no connection was free")
    assert await check(tags("b"), NEW) is None


async def test_turn_of_a_dead_node_is_taken(tags, monkeypatch):
    """Whoever has waited for long enough checks, and others wait for that one then."""
    monkeypatch.setattr(turns, "CHECK_TIMEOUT_S", 0.1)
    async with tags("dead").turn(APP, ONE, HOUR, 0.0) as turn:
        assert turn.found is None
        assert await check(tags("b"), NEW) is None
        assert (await check(tags("c"), OLD)).digest == NEW


async def test_clock_that_was_set_back(tags, link, keys):  # noqa: F811
    """A record from the future is none, and does not prevent a later one."""
    await link.call(Script("redis.call('SET', KEYS[1], ARGV[1])"), [keys.tag(APP, ONE)], f"99999999999999|1|{OLD}|7|{TYPE}")
    assert await check(tags("a"), NEW) is None
    assert (await check(tags("b"), OLD)).digest == NEW


@pytest.mark.parametrize("value", [b"", b"x", b"|||||", b"1|2|3|4|5", b"\xff|\xff", b"1"])
async def test_damaged_record_counts_as_none(value, tags, link, keys):  # noqa: F811
    await link.call(Script("redis.call('SET', KEYS[1], ARGV[1])"), [keys.tag(APP, ONE)], value)
    assert await tags("a").find(APP, ONE) is None
    assert await check(tags("a"), NEW) is None
    assert (await check(tags("b"), OLD)).digest == NEW


@pytest.mark.parametrize("error", [NotFound("404"), AccessDenied("403")])
async def test_refusal_counts_until_it_is_found(error, tags, link, keys):  # noqa: F811
    refusals = Refusals(link, keys, "a")
    assert await check(tags("a"), OLD) is None
    await refusals.share("manifest", APP, ONE, error, HOUR)
    with pytest.raises(type(error), match="to another node"):
        await check(tags("b"), NEW)
    with pytest.raises(type(error)):
        await refusals.raise_if_refused("manifest", APP, ONE)
    await tags("c").put(APP, ONE, learned(NEW))
    assert (await check(tags("b"), OLD)).digest == NEW
