"""Notifications of a cluster with a real Redis: each move is told once, and none is lost with the node that has found it."""

import asyncio
import json
import signal

import pytest

from mirror.cache.tag_store import Move
from mirror.core.digest import Digest
from mirror.core.names import Repository, Tag
from mirror.core.notice import Notice
from mirror.sync.notifier import Notifier, RetryPolicy
from mirror.upstream.webhook import Webhook
from tests.e2e.harness.whole_nodes import whole_nodes
from tests.support.receiver import Receiver
from tests.support.waiting import LIMIT, eventually

pytestmark = pytest.mark.e2e

APP = "library/app"
OLD, NEW = Digest.of(b"old"), Digest.of(b"new")
QUICK = RetryPolicy(base=0.01, longest=0.02, takeover=0.02)
SLOW = RetryPolicy(base=1000.0, longest=1000.0, takeover=0.02)


@pytest.fixture
def nodes(anonymous, redis, tmp_path):
    """Starts nodes that check each pull, and that tell a receiver."""

    def start(receiver, count=3, **rule):
        sync = {"interval": "0", "notify": {"url": receiver.url}}
        registry = {"upstreams": [anonymous.url], "tags": [{"match": "*/*", "ttl": "0", **rule}]}
        settings = {"sync": sync, "registries": {"docker.io": registry}}
        return whole_nodes(anonymous, tmp_path, redis, count=count, **settings)

    return start


def tag(name):
    return f"/v2/{APP}/manifests/{name}"


async def moved(hub, nodes, *tags):
    """Move tags that all these nodes hold, and have each of them find that out."""
    for name in tags:
        hub.add_image(APP, name, layers=[f"old {name}".encode()])
        for node in nodes:
            assert (await node.get(tag(name))).status == 200
        new = hub.add_image(APP, name, layers=[f"new {name}".encode()])
        for node in nodes:
            assert (await node.get(tag(name))).body == new.raw


async def looks_often(hub, node, receiver):
    """Have a node look often for what others leave; the next pause is a short one after it has told something."""
    node.services.notifier.policy = QUICK
    await moved(hub, [node], "own")
    await receiver.got(1)


def move(name):
    """A move that was found a minute after the check before."""
    return Move(Repository.parse("docker.io", APP), Tag(name), OLD, NEW, 1_800_000_060.0, 1_800_000_000.0)


def told(received):
    """The events and tags of notifications, in order."""
    bodies = [json.loads(one.body) for one in received]
    return sorted((body["event"], body["tag"]) for body in bodies)


@pytest.mark.parametrize(("rule", "event"), [({}, "tag_moved"), ({"freeze": True}, "tag_held_back")])
async def test_told_once(anonymous, nodes, rule, event):
    """Each of three nodes finds the same move; the receiver hears of it once, and again when the tag has moved on."""
    async with Receiver() as receiver, nodes(receiver, **rule) as (one, two, three):
        hub, all_nodes = anonymous, (one, two, three)
        hub.add_image(APP, "1", layers=[b"first"])
        for node in all_nodes:
            assert (await node.get(tag("1"))).status == 200
        for content in (b"second", b"third"):
            hub.add_image(APP, "1", layers=[content])
            for node in all_nodes:
                assert (await node.get(tag("1"))).status == 200
        # What each node tells after that, so that it has told of the first tag by then.
        for number, node in enumerate(all_nodes):
            hub.add_image(APP, f"own-{number}", layers=[b"old"])
            assert (await node.get(tag(f"own-{number}"))).status == 200
            hub.add_image(APP, f"own-{number}", layers=[b"new"])
            assert (await node.get(tag(f"own-{number}"))).status == 200
        expected = [(event, "1"), (event, "1"), *((event, f"own-{number}") for number in range(3))]
        assert told(await receiver.got(len(expected))) == expected


async def test_node_that_stops_leaves_it_to_another(anonymous, nodes):
    """It could not deliver it: another node does, which has not found the move, under the same name."""
    async with Receiver(200, 500, 500) as receiver, nodes(receiver, count=2) as (one, two):
        one.services.notifier.policy = SLOW
        await looks_often(anonymous, two, receiver)
        await moved(anonymous, [one], "1")
        first = (await receiver.got(2))[1]
        one.stop()
        await one.stopped()
        sent = (await receiver.got(4))[1:]
        assert {(one.body, one.headers["x-registry-mirror-delivery"]) for one in sent} == {
            (first.body, first.headers["x-registry-mirror-delivery"])
        }
        await eventually(lambda: two.metric("notifications_total", result="sent"), "counted", holds=lambda sent: sent == 2)


async def test_node_that_dies_leaves_it_to_another(anonymous, redis, nodes):
    """Its lease ends: one that waits behind a silent receiver is sent by another node, as is the one that was being sent."""
    async with Receiver(200, "stall") as receiver, nodes(receiver, count=2) as (one, two):
        await looks_often(anonymous, two, receiver)
        await moved(anonymous, [one], "1", "2")
        await receiver.got(2)
        keys = await eventually(lambda: redis.command("keys", "*:notices:*"), "the leases")
        names = await eventually(lambda: redis.command("zrange", keys[0], "0", "-1"), "both", holds=lambda found: len(found) == 2)
        for name in names:
            await redis.command("zadd", keys[0], "0", name)
        sent = (await receiver.got(4))[1:]
        assert told(sent) == [("tag_moved", "1"), ("tag_moved", "1"), ("tag_moved", "2")]
        assert {received.headers["x-registry-mirror-delivery"] for received in sent} == set(names)
        receiver.release.set()


async def test_told_again_if_the_old_one_was_back(redis, nodes):
    """A tag that moves back and forth is told each time, also if nobody could tell of the move back."""
    async with Receiver() as receiver, nodes(receiver, count=1) as (one,):
        notices = one.services.node.notices
        notice = Notice("name", "tag_moved", "docker.io/library/app:1", b"{}")
        assert await notices.offer("receiver", str(NEW), 60.0, notice)
        assert not await notices.offer("receiver", str(NEW), 60.0, notice)
        await eventually(lambda: notices.offer("receiver", str(NEW), 0.0, notice), "a move that began after it")


async def test_stops_while_redis_hangs(redis, nodes):
    """Nobody knows whether another node has told it: this one does, and stops in time."""
    async with Receiver() as receiver, nodes(receiver, count=1) as (one,):
        notifier = Notifier(one.store.files, one.store.threads.write, lambda _: None)
        notifier.shared = one.services.node.notices
        notifier.configure(Webhook(receiver.url))
        running = asyncio.create_task(notifier.run())
        redis.signal(signal.SIGSTOP)
        notifier.notify(move("1"))
        # It waits for the answer of Redis.
        await eventually(lambda: not notifier.waiting, "taken up")
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await notifier.close()
        redis.signal(signal.SIGCONT)
        assert told(receiver.received) == [("tag_moved", "1")]


async def test_nothing_is_lost_that_others_send(redis, nodes):
    """A node that stops counts as lost neither what it leaves to others nor what another node has found first."""
    counted = []
    async with Receiver("stall", "stall") as receiver, nodes(receiver, count=1) as (one,):
        notifier = Notifier(one.store.files, one.store.threads.write, counted.append, RetryPolicy(last=0.5))
        notices = notifier.shared = one.services.node.notices
        webhook = Webhook(receiver.url)
        notifier.configure(webhook)
        running = asyncio.create_task(notifier.run())
        notifier.notify(move("1"))
        await receiver.got(1)
        other = Notice("other", "tag_moved", f"docker.io/{APP}:2", b"{}")
        assert await notices.offer(webhook.receiver, str(NEW), 0.0, other)
        for name in "23":
            notifier.notify(move(name))
        await asyncio.wait([delivery.is_ours for delivery in notifier._waiting], timeout=LIMIT)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await notifier.close()
        assert counted == []
        receiver.release.set()


async def test_garbage_in_redis_ends_nothing(anonymous, redis, nodes):
    """What another version has left is passed over."""
    async with Receiver() as receiver, nodes(receiver, count=1) as (one,):
        await moved(anonymous, [one], "1")
        await receiver.got(1)
        (key,) = await redis.command("keys", "*:told:*")
        receiver_name = key.partition(":told:")[2].partition("|")[0]
        prefix = key.partition("told:")[0]
        await redis.command("set", f"{prefix}notice:strange", "no line")
        await redis.command("zadd", f"{prefix}notices:{receiver_name}", "0", "strange")
        assert await one.services.node.notices.take(receiver_name) is None
        await redis.command("set", key, "strange")
        await moved(anonymous, [one], "2")
        assert told(await receiver.got(2)) == [("tag_moved", "1"), ("tag_moved", "2")]


async def test_without_redis_each_node_tells(anonymous, redis, nodes):
    """More than once, but never not at all."""
    async with Receiver() as receiver, nodes(receiver, count=2) as all_nodes:
        anonymous.add_image(APP, "1", layers=[b"old"])
        for node in all_nodes:
            assert (await node.get(tag("1"))).status == 200
        redis.signal(signal.SIGKILL)
        anonymous.add_image(APP, "1", layers=[b"new"])
        await asyncio.gather(*(node.get(tag("1")) for node in all_nodes))
        assert told(await receiver.got(2)) == [("tag_moved", "1")] * 2
