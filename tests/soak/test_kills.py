"""A node of three dies in the middle of a large blob: upstream sends little of it again.

SOAK_SEED chooses the first of the eight kills.
"""

import asyncio
import contextlib
import os
import random

import pytest

from mirror.download.chunk_map import ChunkMap
from tests.soak.storm import APP, Storm, StormNode
from tests.support.waiting import eventually

SEED = int(os.environ.get("SOAK_SEED", "1"))
SIZE = 50_000_000
# The share of the blob that upstream may send. A twentieth is what it sends in 50 ms: the machine must not be busy. What upstream
# has sent and the dead node has not stored is lost to everybody; the kernel receives for a process until that has ended.
MAX_SHARE = 1.05


@pytest.mark.parametrize("connections", [1, 6])
@pytest.mark.parametrize("seed", range(SEED, SEED + 8))
async def test_one_node_dies(seed, connections, hub, redis, tmp_path, capsys):
    """The owner, or one that follows it, at any byte: everybody gets the right bytes."""
    hub.auth, hub.redirect_blobs = "none", False
    hub.bandwidth = 50e6
    chance = random.Random(seed)
    own = {"redis": {"timeout": "250ms"}, "stall_timeout": "3s"}
    settings = {"cluster": own, "downloads": {"prefetch": False, "connections_per_blob": connections}}
    nodes = [StormNode(hub, tmp_path / f"node-{number}", redis, **settings) for number in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node)
            await node.joined()
        storm = Storm(hub, nodes, redis, None, seed)
        blob = hub.add_synthetic_blob(APP, SIZE, seed)
        hub.add_image(APP, "1", [blob])
        storm.blobs.append(blob)
        # Three times of four the owner: only its death costs bytes.
        at, is_owner, another = chance.uniform(0.05, 0.95) * SIZE, chance.random() < 0.75, chance.randrange(1, 3)
        pulls = [asyncio.create_task(storm.pull(blob, first)) for first in range(len(nodes))]
        await eventually(lambda: hub.bytes_sent(blob.digest) >= at, "the moment of the kill")
        owner = await owner_of(nodes, redis)
        victim = nodes[(owner + (0 if is_owner else another)) % len(nodes)]
        to_owner = [seen for seen in hub.requests if seen.digest == blob.digest]
        victim.kill()
        await victim.ended()
        floor = sum(seen.body_bytes_sent for seen in to_owner) - stored(victim) if is_owner else 0
        await asyncio.gather(*pulls)
        share = storm.share()
        with capsys.disabled():
            who = f"the owner, which had not stored {floor / SIZE:.3f}" if is_owner else "a follower"
            print(f"\nseed {seed}, {connections} connections: {who}, at {at / SIZE:.2f}, upstream {share:.3f} x, {storm.report}")
        assert storm.report.wrong == []
        assert share <= MAX_SHARE


def stored(node):
    """How many bytes of the blob a node has on its disk."""
    (path,) = node.store.rglob("partial/sha256/*.map")
    found = ChunkMap(str(path))
    with contextlib.closing(found):
        assert found.refresh(path.with_suffix("").stat())
        return found.received()


async def owner_of(nodes, redis):
    """The number of the node that has the lease."""
    (key,) = await redis.command("keys", "*:b:*")
    (value,) = await redis.command("get", key)
    (number,) = [number for number, node in enumerate(nodes) if f":{node.node_port}" in value]
    return number
