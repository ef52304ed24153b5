"""A cluster with Redis and a bucket, all of which are killed, frozen and cut off for minutes, gives everybody the right bytes.

SOAK_SECONDS and SOAK_SEED choose how long (two minutes) and which run.
"""

import asyncio
import contextlib
import os
import signal

import pytest

from tests.soak.storm import Storm, StormNode
from tests.support.buckets import BucketServer
from tests.support.processes import Process
from tests.support.waiting import eventually

SECONDS = float(os.environ.get("SOAK_SECONDS", "120"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
BUGS = ("Traceback", "download_bug", "node_poisoned", "object_wrong", "Session is closed")
# The share of what was cold that upstream may send.
MAX_SHARE = 1.05


@pytest.fixture
def bucket(tmp_path):
    """An S3 server with a bucket."""
    server = BucketServer()
    yield server
    server.close()


def settings(bucket, tmp_path):
    """Of a node with a bucket."""
    key = tmp_path / "key"
    key.write_text("id\nsecret\n")
    objects = {"url": "s3://soak/x", "endpoint": f"http://127.0.0.1:{bucket.port}", "access_key_file": str(key)}
    own = {"redis": {"timeout": "250ms"}, "stall_timeout": "3s"}
    return {"objects": objects, "cluster": own, "downloads": {"prefetch": False}}


async def left_in_redis(redis):
    """Leases and turns of nobody, and what has no end."""
    found = [f"lease {state}" for state in await redis.states() if state != "held"]
    for key in await redis.command("keys", "*"):
        kind = key.split(":")[3]
        if kind in ("ml", "tl"):
            found.append(key)
        if kind not in ("todo", "used", "ev", "s3bytes") and await redis.command("ttl", key) == ["-1"]:
            found.append(f"{key} has no end")
    return found


@pytest.mark.timeout(SECONDS + 400)
async def test_storm(hub, redis, bucket, tmp_path, capsys):
    """Right digests everywhere, upstream within 1.05 of what was cold, verify clean, and nothing left in Redis."""
    hub.auth, hub.redirect_blobs = "none", False
    hub.connection_bandwidth = 10e6
    bucket.bucket("soak")
    nodes = [StormNode(hub, tmp_path / f"node-{number}", redis, **settings(bucket, tmp_path)) for number in range(3)]
    async with contextlib.AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node)
            await node.joined()
        storm = Storm(hub, nodes, redis, bucket, SEED)
        await storm.run(SECONDS, every=4.0)
        share, told = storm.share(), storm.report
        with capsys.disabled():
            print(f"\nseed {SEED}: {len(storm.blobs)} blobs, upstream {share:.3f} x, {told}")
        assert told.wrong == []
        for node in nodes:
            await eventually(node.metrics, "joined", holds=lambda seen: not seen["registry_mirror_cluster_alone"])
        # Undisturbed, everything is right at every node.
        for blob in storm.blobs:
            await asyncio.gather(*(storm.pull(blob, first) for first in range(len(nodes))))
        assert told.wrong == []
        assert share <= MAX_SHARE
        await eventually(lambda: left_in_redis(redis), "nothing left", holds=lambda found: found == [])
        for node in nodes:
            assert [bug for bug in BUGS if bug in node.log] == []
            node.signal(signal.SIGTERM)
        for node in nodes:
            assert await node.ended() == 0
    for node in nodes:
        async with Process("verify", "--config", str(node.file), directory=node.file.parent) as process:
            assert await process.ended() == 0, process.log
