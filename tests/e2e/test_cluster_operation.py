"""What an operator sees of a cluster, and does to it: nodes, rotation of the secret."""

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from tests.e2e.harness.cluster import cluster
from tests.e2e.test_cluster import right
from tests.support.waiting import LIMIT, eventually

pytestmark = pytest.mark.e2e

APP = "library/app"
MIB = 1 << 20


async def test_command_lists_the_nodes(anonymous, redis, tmp_path):
    """Those that beat, and which one was asked; so do status and its page."""
    async with cluster(anonymous, tmp_path, redis, count=2, workers=1, cluster={"zone": "eu-1"}) as nodes:
        for node in nodes:
            await eventually(node.metrics, "two nodes", holds=lambda seen: seen["registry_mirror_cluster_nodes"] == 2)
        command = [sys.executable, "-m", "mirror", "nodes", "--url", f"http://127.0.0.1:{nodes[0].admin_port}"]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        out, _ = await asyncio.wait_for(process.communicate(), LIMIT)
        found = {line[2:].split()[0]: line[0] for line in out.decode().splitlines()[1:]}
        assert found == {f"http://127.0.0.1:{node.node_port}": "*" if node is nodes[0] else " " for node in nodes}

        status = json.loads(await nodes[0].admin("/api/v1/status"))["cluster"]
        assert (status["redis"], len(status["nodes"])) == ("up", 2)
        assert {(node["state"], node["zone"], node["owed"]) for node in status["nodes"]} == {("up", "eu-1", 0)}
        page = (await nodes[0].admin("/")).decode()
        assert all(f"http://127.0.0.1:{node.node_port}" in page for node in nodes)
        command[3] = "status"
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert b"2 nodes" in (await asyncio.wait_for(process.communicate(), LIMIT))[0]
        redis.signal(signal.SIGKILL)
        status = json.loads(await nodes[0].admin("/api/v1/status"))["cluster"]
        assert (status["redis"], status["nodes"]) == ("alone", [])
        assert "cannot be asked" in (await nodes[0].admin("/")).decode()


async def beat(redis, node):
    """The time of the last beat of a node."""
    return await redis.command("zscore", "rm:{default}:1:nodes", f"http://127.0.0.1:{node.node_port}")


@pytest.mark.full
async def test_secret_is_rotated_over_running_nodes(anonymous, redis, tmp_path):
    """The new one is added everywhere, then put first, then the old one is removed: no node is refused at any moment."""
    old, new = "a secret of forty characters, more or less", "another one, of about forty characters"
    steps = [f"{old}\n{new}\n", f"{new}\n{old}\n", f"{new}\n"]
    blobs = [anonymous.add_synthetic_blob(APP, MIB, seed) for seed in range(2 * len(steps))]
    anonymous.add_image(APP, "1", blobs)
    async with cluster(anonymous, tmp_path, redis, count=2, workers=1) as nodes:
        for step in steps:
            for node in nodes:
                path = Path(node.settings["cluster"]["secret_file"])
                path.write_text(step)
                # The file is read before each beat: after two of them it has been.
                for _ in range(2):
                    last = await beat(redis, node)
                    await eventually(lambda node=node: beat(redis, node), "a beat", holds=lambda seen, last=last: seen != last)
                # One of the nodes is a step ahead of the other.
                blob = blobs.pop()
                for one in nodes:
                    assert right(await one.whole(APP, blob.digest), blob.digest)
                assert anonymous.bytes_sent(blob.digest) == blob.size
        assert all("node_refused" not in node.log for node in nodes)
