"""Moves that are held back in a cluster with a real Redis: one clock for all nodes, and one release."""

import signal
import time

import pytest

from tests.e2e.harness.cluster import Node, cluster
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

APP = "library/app"
TAG = f"/v2/{APP}/manifests/1"
DAY_MS = 86_400_000


@pytest.fixture
def nodes(hub, redis, tmp_path):
    """Starts two nodes with a rule for the tag, which check each pull."""
    hub.auth, hub.redirect_blobs = "none", False

    def start(**rule):
        entry = {"upstreams": [hub.url], "tags": [{"match": APP, **rule}]}
        return cluster(hub, tmp_path, redis, count=2, workers=1, registries={"docker.io": entry})

    return start


async def named(node, path=TAG):
    """The digest that a node answers with, and the one that it says to be held back."""
    async with node.session.get(node.url(path)) as answer:
        assert answer.status == 200, await answer.text()
        return answer.headers["Docker-Content-Digest"], answer.headers.get("X-Registry-Mirror-Held-Back", "").partition(";")[0]


async def moved(hub, nodes):
    """Have all nodes pull an image, and move its tag: the old and the new digest."""
    old = hub.add_image(APP, "1", layers=[b"old"])
    assert [await named(node) for node in nodes] == [(old.digest, "")] * 2
    return old.digest, hub.add_image(APP, "1", layers=[b"new"]).digest


async def test_clock_is_that_of_the_first_node(hub, redis, nodes):
    """What another node has seen long ago is followed at once by one that sees it for the first time."""
    async with nodes(cooldown="3d") as (one, two):
        old, new = await moved(hub, (one, two))
        assert await named(one) == (old, new)
        (key,) = await redis.command("keys", f"*:seen:*|{APP}|{new}")
        first = int(time.time() * 1000) - 4 * DAY_MS
        await redis.command("set", key, f"{first}|,")
        assert await named(two) == (new, "")
        assert await named(one) == (new, "")


async def test_release_counts_on_all_nodes(hub, nodes):
    """Another tag of the same image stays frozen on each node."""
    async with nodes(freeze=True) as (one, two):
        old, new = await moved(hub, (one, two))
        hub.move_tag(APP, "2", old)
        for node in (one, two):
            await named(node, f"/v2/{APP}/manifests/2")
        hub.move_tag(APP, "2", new)
        for node in (one, two):
            assert await named(node) == await named(node, f"/v2/{APP}/manifests/2") == (old, new)
        await one.admin("/api/v1/release", method="POST", images=["app:1"])
        for node in (one, two):
            assert await named(node) == (new, "")
            assert await named(node, f"/v2/{APP}/manifests/2") == (old, new)


async def test_release_lets_a_tag_move_once(hub, redis, nodes):
    """Some days later the tag does not go back to what was released."""
    async with nodes(freeze=True) as (one, two):
        old, new = await moved(hub, (one, two))
        for node in (one, two):
            assert await named(node) == (old, new)
        await one.admin("/api/v1/release", method="POST", images=["app:1"])
        assert await named(one) == await named(two) == (new, "")
        (key,) = await redis.command("keys", f"*:seen:*|{APP}|{new}")
        first, _, released = (await redis.command("get", key))[0].partition("|")
        when = int(released.strip(",").removeprefix("1@"))
        await redis.command("set", key, f"{first}|,1@{when - DAY_MS},")
        third = hub.add_image(APP, "1", layers=[b"third"]).digest
        assert await named(one) == (new, third)
        await one.admin("/api/v1/release", method="POST", images=["app:1"])
        assert await named(one) == await named(two) == (third, "")
        hub.move_tag(APP, "1", new)
        assert await named(one) == await named(two) == (third, new)


async def test_node_without_a_store_keeps_what_the_others_keep(hub, redis, tmp_path):
    """By a pull and by `warm`; a tag that was purged on all nodes is a new one."""
    hub.auth, hub.redirect_blobs = "none", False
    rules = [{"match": "library/frozen", "freeze": True}, {"match": "library/cooling", "cooldown": "3d"}]
    settings = {"workers": 1, "registries": {"docker.io": {"upstreams": [hub.url], "tags": rules}}}
    async with cluster(hub, tmp_path, redis, count=1, **settings) as (one,):
        moves = [await _moved_tags(hub, one, rule["match"]) for rule in rules]
        async with Node(hub, tmp_path / "later", redis, **settings) as later:
            await later.joined()
            for rule, (old, new) in zip(rules, moves, strict=True):
                await _keeps(later, rule["match"], old, new)


async def _moved_tags(hub, node, name):
    """Have a node pull four tags of an image, move three of them, and purge one: the old and the new digest."""
    old = hub.add_image(name, "1", layers=[b"old", name.encode()]).digest
    for tag in ("1", "2", "3", "4"):
        hub.move_tag(name, tag, old)
        assert await named(node, f"/v2/{name}/manifests/{tag}") == (old, "")
    new = hub.add_image(name, "1", layers=[b"new", name.encode()]).digest
    for tag in ("2", "3"):
        hub.move_tag(name, tag, new)
    await node.admin("/api/v1/purge", method="POST", match=f"{name}:3")
    return old, new


async def _keeps(node, name, old, new):
    """A node that holds nothing keeps to the digests that others hold, but for what was purged."""
    assert await named(node, f"/v2/{name}/manifests/1") == (old, new)
    status, out, _ = await node.command("warm", f"{name}:2", f"{name}:4")
    assert (status, b"held_back" in out or b"held back" in out, b"moved" in out) == (0, True, True), out
    assert await named(node, f"/v2/{name}/manifests/4") == (old, "")
    assert await named(node, f"/v2/{name}/manifests/2") == (old, new)
    assert await named(node, f"/v2/{name}/manifests/3") == (new, "")


async def test_release_does_not_wait_for_the_ttl(hub, redis, tmp_path):
    """The other node follows although its last check is young, and its list is empty at once."""
    hub.auth, hub.redirect_blobs = "none", False
    entry = {"upstreams": [hub.url], "tags": [{"match": APP, "freeze": True, "ttl": "1h"}]}
    async with cluster(hub, tmp_path, redis, count=2, workers=1, registries={"docker.io": entry}) as (one, two):
        old, new = await moved(hub, (one, two))
        for node in (one, two):
            await node.admin("/api/v1/purge", method="POST", match="app", soft=True)
        await eventually(lambda: named(two), "a check of both", holds=lambda found: found == (old, new))
        assert await named(one) == (old, new)
        await one.admin("/api/v1/release", method="POST", images=["app:1"])
        await eventually(lambda: named(two), "the release", holds=lambda found: found == (new, ""))
        assert await named(one) == (new, "")


async def test_without_redis_each_node_has_its_own_clock(hub, redis, nodes):
    """Nothing is let through because Redis is away or has forgotten."""
    async with nodes(cooldown="3d") as (one, two):
        old, new = await moved(hub, (one, two))
        assert await named(one) == (old, new)
        redis.signal(signal.SIGKILL)
        assert await named(one) == await named(two) == (old, new)
        redis.start()
        for node in (one, two):
            await node.joined()
            assert await named(node) == (old, new)
