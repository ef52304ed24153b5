"""Breakers that nodes share, at a real Redis: two nodes' word, one that probes, and one that is enough to the contrary."""

import asyncio
import signal
import time

import pytest

from mirror.core.shared_breaker import SharedBreaker, read_breakers, write_breakers
from mirror.upstream.tracked_breaker import Shut
from tests.e2e.harness.cluster import SECRET, cluster
from tests.fakehub import NoHeaders, RateLimited, Rule
from tests.support.mirrors import MirrorUnderTest
from tests.support.ports import free_port
from tests.support.waiting import LIMIT, SOON, eventually

pytestmark = pytest.mark.e2e

APP = "library/app"
IMAGE = f"docker.io/{APP}:1"


def tag(name):
    return f"/v2/{APP}/manifests/{name}"


class Node(MirrorUnderTest):
    """A node with one process, in the event loop of the test.

    Its requests to upstream can be led to a proxy that does not answer: that is not part of its scope.
    """

    def __init__(self, hub, directory, server, **settings):
        directory.mkdir()
        (directory / "secret").write_text(SECRET)
        own = {
            "name": f"breakers-{server.port}",
            "redis": {"url": server.url, "timeout": "5s"},
            "listen": f"127.0.0.1:{free_port()}",
            "secret_file": str(directory / "secret"),
        }
        super().__init__(hub, directory / "store", cluster=own, tags={"ttl": "0s", "not_found_ttl": "0s"}, **settings)
        self.name = f"http://{own['listen']}"

    async def lose_route(self):
        """Have no way to upstream any more."""
        entry = {"upstreams": [self.hub.url], "proxy": f"http://127.0.0.1:{free_port()}"}
        await self.reload(registries={"docker.io": entry})

    async def status_of(self, name):
        """The status of an answer for a tag."""
        return (await self.get(tag(name))).status

    @property
    def shut(self):
        """What the nodes say of the connections to upstream, and of requests for manifests."""
        health = self.upstream().health
        return health.own.shut or health.guard("manifest").shut

    async def admin(self, path):
        async with self.session.get(f"http://127.0.0.1:{self.admin_port}{path}") as response:
            return await response.json(content_type=None)


@pytest.fixture
async def nodes(anonymous, redis, tmp_path, monkeypatch):
    """Three nodes that refuse at once what their breakers refuse, each of which has asked upstream."""
    monkeypatch.setattr("mirror.upstream.health._LASTING_S", 0.0)
    for name in "123":
        anonymous.add_image(APP, name, layers=[anonymous.add_synthetic_blob(APP, 1000 + int(name), int(name))])
    nodes = [Node(anonymous, tmp_path / f"node-{number}", redis) for number in range(3)]
    async with nodes[0], nodes[1], nodes[2]:
        await eventually(
            lambda: redis.command("zcard", nodes[0].services.node.keys.nodes), "joined", holds=lambda seen: seen == ["3"]
        )
        for node, name in zip(nodes, "123", strict=True):
            assert await node.status_of(name) == 200
        yield nodes


async def fail(nodes):
    """Ask nodes for what only upstream has, each for something else: what one has asked for, no other one asks for."""
    assert set(await asyncio.gather(*(node.status_of(f"of-{number}") for number, node in enumerate(nodes)))) == {503}


async def shut(nodes, *, by=()):
    """Wait until nodes refuse by the word of others."""
    await eventually(lambda: [node.shut for node in nodes], "shut", holds=all)
    for node in nodes:
        assert all(name in node.shut.by for name in by)


async def served(nodes):
    """Wait until nodes have upstream again, and they serve."""
    await eventually(lambda: [node.shut for node in nodes], "open again", holds=lambda seen: not any(seen))
    for node in nodes:
        await eventually(lambda node=node: node.status_of("1"), "served", holds=lambda status: status == 200)


async def known(redis):
    """The key of the upstream, and the breakers in it."""
    (key,) = await eventually(lambda: redis.command("keys", "*:up:*"), "the key")
    text = (await redis.command("get", key))[0]
    return key, read_breakers(text.encode())


async def test_two_nodes_shut_an_upstream_that_hangs(anonymous, nodes):
    """The third node sends nothing, one node in all probes, and all serve as soon as it was answered."""
    hanging, pinging = NoHeaders(), NoHeaders()
    anonymous.script(Rule(kind="manifest", times=None), hanging)
    anonymous.script(Rule(kind="ping", times=None), pinging)
    for node in nodes:
        node.set_limits(connect=0.2, headers=0.3, hedge=LIMIT)
    anonymous.reset_counters()
    await fail(nodes[:2])
    await shut(nodes, by=[node.name for node in nodes[:2]])
    began, asked = time.monotonic(), anonymous.count(kind="manifest")
    third = nodes[2]
    refused = await third.get(tag("9"))
    assert (refused.status, nodes[0].name.encode() in refused.body) == (503, False)
    explained = await third.admin(f"/api/v1/explain?image=docker.io/{APP}:3")
    assert nodes[0].name in explained["upstreams"][0]["state"]
    assert nodes[0].name in explained["pull"]["why"]
    ready = await third.admin("/readyz")
    assert all(state.startswith("shut: ") for state in ready["upstreams"].values())
    assert await third.metric("cluster_upstream_shut") == 1
    assert await third.metric("upstream_up") == 0
    assert anonymous.count(kind="manifest") == asked

    # Pauses of one and two seconds; three that probe would have made three requests after the first.
    await eventually(lambda: anonymous.count(kind="ping"), "two probes", holds=lambda count: count >= 2)
    assert time.monotonic() - began > 2.5
    assert anonymous.count(kind="ping") == 2
    for node in nodes:
        node.set_limits(connect=10, headers=LIMIT)
    anonymous.clear_script()
    hanging.release()
    pinging.release()
    await served(nodes)
    assert await third.metric("cluster_upstream_shut") == 0


async def test_node_without_a_route_shuts_nothing(anonymous, redis, nodes):
    """Nor do two: the third has its own answers, tells so, and goes on."""
    first, second, third = nodes
    await first.lose_route()
    assert await first.status_of("9") == 503
    _, breakers = await known(redis)
    assert (list(breakers[""].failures), breakers[""].is_open) == ([first.name], False)
    assert await second.status_of("2") == 200
    assert await third.status_of("3") == 200
    assert [second.shut, third.shut] == [None, None]

    await second.lose_route()
    statuses = []

    async def go_on():
        while True:
            statuses.append(await third.status_of("3"))
            await asyncio.sleep(0.01)

    going = asyncio.create_task(go_on())
    for _ in range(3):
        await fail((first, second))
        count = len(statuses)
        await eventually(lambda count=count: len(statuses) > count + 5)
    going.cancel()
    await asyncio.gather(going, return_exceptions=True)
    assert set(statuses) == {200}
    assert third.requests == []


@pytest.mark.full
async def test_idle_node_finds_that_the_others_have_no_route(nodes):
    """It is shut for as long as a pause, then it probes, since its word is not known, and is answered."""
    first, second, third = nodes
    for node in (first, second):
        await node.lose_route()
    third.upstream().health.own.answered_at = third.upstream().health.guard("manifest").answered_at = float("-inf")
    await fail((first, second))
    await eventually(lambda: third.upstream().state, "probed", holds=lambda state: state == "recovering")
    assert third.shut is None
    assert await third.status_of("3") == 200


async def test_prober_that_dies(anonymous, redis, nodes):
    """Its turn ends, and another node finds that upstream answers."""
    await anonymous.stop()
    await fail(nodes[:2])
    await shut(nodes)
    key, breakers = await known(redis)
    dead = breakers[""].claimed("dead 0", breakers[""].until)
    await redis.command(
        "set", key, write_breakers({"": SharedBreaker(dead.failures, {}, dead.since, 1000, dead.until - 14_500, "dead 0")})
    )
    await anonymous.start()
    await served(nodes)


async def test_without_redis_each_node_decides_alone(anonymous, redis, nodes):
    """A node that was shut by the word of others finds by itself that upstream answers."""
    await anonymous.stop()
    await fail(nodes[:2])
    await shut(nodes)
    redis.signal(signal.SIGKILL)
    await anonymous.start()
    await served(nodes)


@pytest.mark.full
async def test_redis_loses_what_the_nodes_say(anonymous, redis, nodes):
    """They probe, and tell each other anew."""
    await anonymous.stop()
    await fail(nodes[:2])
    await shut(nodes)
    await redis.command("flushall")
    _, breakers = await known(redis)
    assert breakers[""].failures
    assert await nodes[2].status_of("9") == 503
    await anonymous.start()
    await served(nodes)


async def test_429_counts_for_all(anonymous, nodes):
    """Also where a request does not count as a pull."""
    first, second, _ = nodes
    health = second.upstream().health
    anonymous.script(Rule(kind="manifest", method="HEAD", times=None), RateLimited(retry_after=3600))
    assert await first.status_of("1") == 503
    await eventually(lambda: health.pull_quota.state(health.clock()).waits, "the limit", holds=bool)
    anonymous.reset_counters()
    assert await second.status_of("2") == 503
    assert anonymous.count(kind="manifest") == 0


async def test_idle_nodes_ask_redis_nothing(nodes, redis):
    """Neither while upstream answers, nor for requests that it answers."""
    first = nodes[0]
    await first.get(tag("1"))
    breakers = first.services.node.upstreams
    calls = []
    link_call = breakers.news.link.call

    async def call(script, keys, *args):
        calls.extend(key for key in keys if ":up:" in key)
        return await link_call(script, keys, *args)

    breakers.news.link.call = call
    for _ in range(5):
        await first.get(tag("1"))
    assert calls == []

    # What cannot be read is asked for once.
    await redis.command("lpush", breakers.news.keys.upstream("docker.io", f"{first.hub.url}"), "of another kind")
    breakers.news.add()
    for _ in range(5):
        assert await first.status_of("1") == 200
    assert len(calls) == 1


async def test_more_of_the_same_is_not_told(anonymous, nodes):
    """While answers come faster than Redis takes the word of the first one, nothing more is said."""
    first = nodes[0]
    shared = first.services.node.upstreams
    guard = first.upstream().health.guard("manifest")
    (breakers,) = shared._upstreams.values()
    calls, link_call = [], shared.news.link.call

    async def call(script, keys, *args):
        answer = await link_call(script, keys, *args)
        if ":up:" in keys[0]:
            # An answer of upstream comes between any two of Redis.
            guard.answered_at = first.upstream().health.clock()
            calls.append(script)
        return answer

    shared.news.link.call = call
    anonymous.script(Rule(kind="manifest", times=1), NoHeaders())
    first.set_limits(headers=0.05)
    assert await first.status_of("of-1") in (404, 503)
    await eventually(lambda: not breakers._telling, "the word of the first answer", limit=SOON)
    assert len(calls) <= 8


async def test_own_answer_outweighs_the_word_of_others(nodes, redis):
    """Also while another node has the turn to probe: who has an answer since goes on, and opens the upstream for all."""
    third = nodes[2]
    await third.status_of("3")
    node = third.services.node
    seconds, _ = await redis.command("time")
    now = 1000 * int(seconds)
    words = SharedBreaker({"a": now - 5000, "b": now - 5000}, {}, now - 5000, 1000, now + 10_000, "dead 0")
    own = third.upstream().health.own
    own.shut = Shut(0.0, 0.0, own.answered_at, "a and b")
    await redis.command("set", node.keys.upstream("docker.io", f"{third.hub.url}"), write_breakers({"": words}))
    node.upstreams.news.add()
    assert await third.status_of("3") == 200
    assert third.shut is None

    async def answers():
        return list((await known(redis))[1][""].answers)

    await eventually(answers, "told", holds=lambda seen: seen == [third.name])


async def test_processes(anonymous, redis, tmp_path):
    """Nodes of two workers each: by the word of two of them all are shut, and say so; one is answered, and all go on."""
    anonymous.add_image(APP, "1")
    async with cluster(anonymous, tmp_path, redis) as nodes:
        *told, third = nodes
        await anonymous.stop()
        for number, node in enumerate(told):
            assert (await node.get(tag(f"of-{number}")))[0] == 503

        async def states(node):
            return list((await node.ready())[1]["upstreams"].values())

        found = await eventually(lambda: states(third), "shut", holds=lambda seen: seen[0].startswith("shut: "))
        assert all(f"http://127.0.0.1:{node.node_port}" in found[0] for node in told)
        await third.logged("upstream_shut")
        await anonymous.start()
        for node in nodes:
            await eventually(lambda node=node: node.get(tag("1")), "served", holds=lambda answer: answer[0] == 200)
        await eventually(lambda: states(third), "up", holds=lambda seen: seen == ["up"])
        await third.logged("upstream_answers_again")
