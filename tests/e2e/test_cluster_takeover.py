"""What a takeover of a lease costs: a new owner gets from other nodes what they have, and upstream sends little twice."""

import asyncio
import contextlib
import json
import os
import time

import pytest

from mirror.core.hmac_token import SignedRequest, sign
from tests.e2e.harness.cluster import SECRET, Node, cluster
from tests.e2e.harness.throttle import Throttle
from tests.e2e.test_cluster import gets, right
from tests.fakehub import Rule
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

APP = "library/app"
MIB = 1 << 20


async def test_new_owner_takes_what_others_have(anonymous, redis, tmp_path):
    """A node takes a lease over before it has a byte: upstream is asked for what no other node has.

    The one that has lost the lease notices, and follows.
    """
    blob = anonymous.add_synthetic_blob(APP, 30 * MIB, 7)
    anonymous.add_image(APP, "1", [blob])
    first = anonymous.gate(Rule(kind="blob", method="GET"), after=12 * MIB)
    async with cluster(anonymous, tmp_path, redis, count=2) as (loser, taker):
        pulls = [await loser.blob(APP, blob.digest)]
        await pulls[0].read(11 * MIB)
        second = anonymous.gate(Rule(kind="blob", method="GET"), after=2 * MIB)
        (key,) = await redis.command("keys", "*:b:*")
        # As if an owner that is gone had had the lease, and this node had only followed.
        gone = "http://127.0.0.1:1"
        await redis.command("set", key, f"own|x|{gone}|", "px", "60000")
        await redis.command("lpush", key.replace(":b:", ":at:"), gone)
        pulls.append(await taker.blob(APP, blob.digest))
        await pulls[1].read(11 * MIB)
        await eventually(lambda: len(gets(anonymous, blob.digest)) == 2, "upstream asked for the rest")
        await loser.logged("lease_lost")
        first.release()
        # Its stream from upstream ends at the first byte after it has learned that the lease is lost.
        second.release()
        bodies = await asyncio.gather(*(pull.rest() for pull in pulls))
        assert all(right(body, blob.digest) for body in bodies)
        lost, more = gets(anonymous, blob.digest)
        assert int(more.range.removeprefix("bytes=").partition("-")[0]) >= 11 * MIB
        # Twelve, and what the buffers of a connection take.
        assert lost.body_bytes_sent < 20 * MIB
        assert taker.log.count("lease_taken_over") == 1


async def test_follower_sends_what_it_has_to_its_owner(anonymous, redis, tmp_path):
    """A new owner may be behind the nodes that follow it already: they send it what they have, but wait for nothing from it."""
    blob = anonymous.add_synthetic_blob(APP, 4 * MIB, 7)
    anonymous.add_image(APP, "1", [blob])
    gate = anonymous.gate(Rule(kind="blob", method="GET"), after=3 * MIB)
    async with cluster(anonymous, tmp_path, redis, count=2, workers=1) as nodes:
        owner, follower = (f"http://127.0.0.1:{node.node_port}" for node in nodes)
        pulls = [await node.blob(APP, blob.digest) for node in nodes]
        for pull in pulls:
            await pull.read(2 * MIB)

        async def asked(parameters, span):
            path = f"/v2/docker.io/{APP}/blobs/{blob.digest}{parameters}"
            token = sign(SECRET.encode(), SignedRequest("GET", path, span, follower), time.time(), os.urandom(16).hex())
            headers = {"Range": span, "Authorization": token, "X-Mirror-Node": owner}
            async with nodes[1].session.get(follower + path, headers=headers) as response:
                return response.status, response.headers.get("X-Mirror-First"), response.headers.get("X-Mirror-Arrived")

        assert await asked("", "bytes=0-") == (404, None, None)
        assert await asked("?arrived=1", "bytes=0-") == (206, None, None)
        assert await asked("?arrived=1", f"bytes={4 * MIB - 1}-") == (404, None, None)
        # No other range begins; it is told what there is after a moment.
        status, _, arrived = await asked("?arrived=1&news=0", "bytes=0-0")
        assert (status, arrived[:2]) == (200, "0-")
        assert MIB <= int(arrived[2:]) <= 3 * MIB
        assert await asked("?arrived=1&news=x", "bytes=0-0") == (200, None, arrived)
        gate.release()
        assert all([right(await pull.rest(), blob.digest) for pull in pulls])


async def test_owner_dies_that_has_several_connections(anonymous, redis, tmp_path):
    """The other node has what came over each of them, although one connection to the owner would be as fast."""
    blob = anonymous.add_synthetic_blob(APP, 48 * MIB, 7)
    anonymous.add_image(APP, "1", [blob])
    anonymous.connection_bandwidth = 12e6
    gates = [anonymous.gate(Rule(kind="blob", method="GET", range=False), after=8 * MIB)]
    gates.append(anonymous.gate(Rule(kind="blob", method="GET", range=True, times=None), after=2 * MIB))
    async with cluster(anonymous, tmp_path, redis, count=2, workers=1) as (owner, follower):
        pulls = [await node.blob(APP, blob.digest) for node in (owner, follower)]
        # All connections of the owner stand still.
        await eventually(lambda: sum(gate.waiting for gate in gates) >= 4, "four connections")

        async def received():
            texts = [await node.admin("/api/v1/downloads") for node in (owner, follower)]
            return [json.loads(text)["downloads"][0]["bytes"] for text in texts]

        await eventually(received, "the other node has all of it", holds=lambda counts: counts[0] == counts[1] >= 12 * MIB)
        owner.kill()
        # The connections of the owner still stand still.
        anonymous.clear_script()
        anonymous.connection_bandwidth = None
        assert right(await pulls[1].rest(), blob.digest)
        assert anonymous.bytes_sent(blob.digest) <= 1.05 * blob.size
        await pulls[0].close()
        for gate in gates:
            gate.release()


@pytest.mark.full
async def test_slow_node_is_left(anonymous, redis, tmp_path):
    """A node that is sent much less than the one above has goes on from that one, and upstream sends nothing again."""
    blob = anonymous.add_synthetic_blob(APP, 24 * MIB, 7)
    anonymous.add_image(APP, "1", [blob])
    nodes = [Node(anonymous, tmp_path / f"node-{number}", redis, workers=1, cluster={"fan_out": 1}) for number in range(3)]
    slow = nodes[1]
    line = Throttle(tmp_path / "line", f"http://127.0.0.1:{slow.node_port}", 200_000)
    slow.settings["cluster"]["advertise"] = line.url
    slow.write()
    try:
        async with contextlib.AsyncExitStack() as stack:
            for node in nodes:
                await stack.enter_async_context(node)
                await node.joined()
                # At the rate of the line this takes two minutes, longer than anything waits in tests.
                assert right(await node.whole(APP, blob.digest), blob.digest)
            await nodes[2].logged('"slow"')
            assert anonymous.bytes_sent(blob.digest) == blob.size
            assert "lease_taken_over" not in nodes[2].log
    finally:
        line.close()
