"""Events in a cluster with a real Redis: what one node learns or is told, the others know."""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from tests.e2e.harness.cluster import cluster
from tests.fakehub import Rule, Status
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

APP, OTHER = "library/app", "library/other"
TAG = f"/v2/{APP}/manifests/1"


@pytest.fixture
async def nodes(hub, redis, tmp_path):
    """Three nodes of one worker that hold an image, whose tag is fresh for an hour."""
    hub.auth, hub.redirect_blobs = "none", False
    hub.add_image(APP, "1")
    settings = {"tags": {"ttl": "1h", "not_found_ttl": "1h"}, "sync": {"interval": "0s"}}
    async with cluster(hub, tmp_path, redis, workers=1, **settings) as found:
        for node in found:
            await follows(node, 3)
        for node in found:
            assert (await node.get(TAG))[0] == 200
        hub.reset_counters()
        yield found


async def follows(node, count):
    """Wait until a node reads the events, and knows so many nodes."""
    await eventually(lambda: (node.store / "index" / "events").exists(), "reads events")
    await eventually(lambda: node.admin("/api/v1/nodes"), "all nodes", holds=lambda seen: len(json.loads(seen)["nodes"]) == count)


async def answers(nodes, path=TAG):
    """What each of the nodes answers, asked at once: status, outcome, body."""
    return await asyncio.gather(*(node.get(path) for node in nodes))


async def synced(node):
    """Have a node check its tag upstream."""
    order = json.loads(await node.admin("/api/v1/sync", method="POST", images=[f"docker.io/{APP}:1"]))["order"]

    async def state():
        return json.loads(await node.admin(f"/api/v1/sync/{order}"))

    return await eventually(state, "ended", holds=lambda state: state["result"] not in ("waiting", "running"))


async def test_one_node_tells_the_others(hub, nodes):
    """A move that one node finds, a purge that one is told, and a denial of upstream to one: it counts for all at once."""
    hub.add_image(APP, "1", layers=[hub.add_synthetic_blob(APP, 1000)])
    await synced(nodes[0])
    _, _, new = await nodes[0].get(TAG)
    await eventually(lambda: answers(nodes), "moved", holds=lambda found: [body for *_, body in found] == [new] * 3)
    assert len([seen for seen in hub.find(kind="manifest") if seen.path.endswith("/1")]) == 1
    assert hub.count(method="GET", kind="manifest") == 1

    # What is due on all nodes at once is checked once.
    hub.reset_counters()
    answer = json.loads(await nodes[1].admin("/api/v1/purge", method="POST", match="*/*", soft=True, wait=True))
    assert [one["state"] for one in answer["nodes"]] == ["purged"] * 3, answer
    assert {(status, outcome) for status, outcome, _ in await answers(nodes)} <= {(200, "REVALIDATED"), (200, "JOINED")}
    assert (hub.count(method="HEAD"), hub.count(method="GET")) == (1, 0)

    # The answer names each node. The image is gone everywhere, and the next pull asks upstream.
    hub.add_image(OTHER, "1")
    assert (await nodes[2].get(f"/v2/{OTHER}/manifests/1"))[0] == 200
    code, out, _ = await nodes[0].command("purge", "app", "other:1", "--wait", "--yes")
    assert code == 0, out
    assert out.decode().count(": 1 tags, ") == 4, out
    assert all(not node.files("blobs") for node in nodes)
    hub.reset_counters()
    assert {status for status, *_ in await answers(nodes)} == {200}
    assert hub.count(method="HEAD") == 1

    # Upstream revokes the image: no node serves it until its ttl has passed.
    hub.script(Rule(kind="manifest", times=None), Status(403))
    hub.reset_counters()
    await synced(nodes[0])
    await eventually(lambda: answers(nodes), "denied", holds=lambda found: [status for status, *_ in found] == [404] * 3)
    assert hub.count(kind="manifest") == 1


@pytest.mark.full
async def test_events_that_are_missed(hub, nodes, redis):
    """A node that has missed events checks all tags again; one that was away for a moment only does what it was told."""
    late, purged = nodes[1], {"method": "POST", "match": f"docker.io/{APP}"}
    late.kill(signal.SIGSTOP)
    told = json.loads(await nodes[0].admin("/api/v1/purge", **purged))
    assert {one["name"]: one["state"] for one in told["nodes"]}[f"http://127.0.0.1:{late.node_port}"] == "told"
    late.kill(signal.SIGCONT)
    await late.logged("purged_for_node")
    assert not late.files("blobs")

    assert {status for status, *_ in await answers(nodes)} == {200}
    late.kill(signal.SIGSTOP)
    await nodes[0].admin("/api/v1/purge", **purged)
    await nodes[2].logged("purged_for_node", 2)
    await redis.command("xtrim", "rm:{default}:1:ev", "MAXLEN", "0")
    late.kill(signal.SIGCONT)
    await late.logged("events_missed")
    hub.reset_counters()
    assert (await late.get(TAG))[1] == "REVALIDATED"
    assert hub.count(method="HEAD") == 1

    # Redis loses its data: all nodes check again, once for all of them.
    await redis.command("flushall")
    for node in nodes:
        await node.logged("events_missed", 2 if node is late else 1)
    hub.reset_counters()
    assert {status for status, *_ in await answers(nodes)} == {200}
    assert hub.count(method="HEAD") == 1

    # Without Redis a node purges, and says that the others were not told.
    redis.signal(signal.SIGKILL)
    await eventually(nodes[0].metrics, "alone", holds=lambda seen: seen["registry_mirror_cluster_alone"] == 1)
    code, _, problem = await nodes[0].command("purge", "app", "--yes")
    assert code == 1
    assert b"the other nodes were not told" in problem
    assert not nodes[0].files("blobs")
    assert nodes[1].files("blobs")


@pytest.mark.full
async def test_reader_dies(hub, redis, tmp_path):
    """Of two workers another one reads the events then."""
    hub.auth = "none"
    hub.add_image(APP, "1")
    async with cluster(hub, tmp_path, redis, count=2, tags={"ttl": "1h"}) as (first, second):
        assert (await second.get(TAG))[0] == 200
        await follows(first, 2)
        await follows(second, 2)
        reader = next(pid for pid in second.workers() if _locks(pid, second.store / "events.lock"))
        os.kill(reader, signal.SIGKILL)
        answer = json.loads(await first.admin("/api/v1/purge", method="POST", match="*/*", wait=True))
        assert [one["state"] for one in answer["nodes"]] == ["purged"] * 2
        assert not second.files("blobs")


def _locks(pid, path):
    """Whether a process holds the lock of a file."""
    return any(f" {pid} " in line and f":{path.stat().st_ino} " in line for line in Path("/proc/locks").read_text().splitlines())
