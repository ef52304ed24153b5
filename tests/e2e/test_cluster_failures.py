"""What the loss of parts of a cluster leads to, beside the death of nodes: Redis empty or full, a full disk, a wrong clock."""

import asyncio
import json
import os
import random
import time

import pytest
from aiohttp import web

from mirror.core.hmac_token import SignedRequest, sign
from tests.e2e.harness.cluster import SECRET, Node, cluster
from tests.e2e.harness.containerd import Containerd
from tests.e2e.harness.skopeo import Skopeo
from tests.e2e.test_cluster import gets, right
from tests.fakehub import Rule, layer
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

APP = "library/app"
MIB = 1 << 20


async def test_redis_loses_everything_in_mid_blob(anonymous, redis, tmp_path):
    """The owner writes its lease again; who comes later follows it, and upstream sends the blob once."""
    blob = anonymous.add_synthetic_blob(APP, 8 * MIB, 7)
    anonymous.add_image(APP, "1", [blob])
    gate = anonymous.gate(Rule(kind="blob", method="GET"), after=3 * MIB)
    async with cluster(anonymous, tmp_path, redis, workers=1) as (owner, other, late):
        pulls = [await node.blob(APP, blob.digest) for node in (owner, other)]
        await redis.command("flushall")
        await eventually(redis.states, "the lease", holds=lambda states: states == ["own"])
        pulls.append(await late.blob(APP, blob.digest))
        gate.release()
        assert all([right(await pull.rest(), blob.digest) for pull in pulls])
        assert anonymous.bytes_sent(blob.digest) == blob.size


@pytest.mark.full
async def test_real_clients_of_a_node_whose_neighbour_has_a_bad_disk(anonymous, redis, tmp_path):
    """containerd and skopeo pull an image of which another node sends a damaged layer; neither notices anything."""
    content = layer({"data": random.Random(1).randbytes(3 * MIB)})
    image = anonymous.add_image(APP, "1", [content])
    (blob,) = image.layers
    async with cluster(anonymous, tmp_path, redis, workers=1) as (liar, *others):
        assert right(await liar.whole(APP, blob.digest), blob.digest)
        await eventually(redis.states, "settled", holds=lambda states: states == ["held"])
        (path,) = [path for path in liar.files("blobs") if path.name == blob.digest.partition(":")[2]]
        path.chmod(0o600)
        with path.open("r+b") as file:
            file.seek(2 * MIB + 5)
            file.write(b"damaged")
        containerd = await asyncio.to_thread(Containerd, tmp_path / "containerd")
        try:
            hosts = containerd.hosts("hosts.d", "docker.io", anonymous.url, f"http://127.0.0.1:{others[0].port}")
            await asyncio.to_thread(containerd.pull, hosts, f"docker.io/{APP}:1")
            assert containerd.image_digest(f"docker.io/{APP}:1") == image.digest
        finally:
            await asyncio.to_thread(containerd.close)
        await others[0].logged("node_poisoned")
        skopeo = Skopeo(tmp_path / "skopeo", others[1].port)
        await asyncio.to_thread(skopeo.copy, f"docker.io/{APP}:1")


async def test_redis_is_full(anonymous, redis, tmp_path):
    """Nothing can be written: each node fetches by itself, is ready, and no pull fails."""
    blob = anonymous.add_synthetic_blob(APP, 2 * MIB, 7)
    anonymous.add_image(APP, "1", [blob])
    async with cluster(anonymous, tmp_path, redis, count=2, workers=1) as nodes:
        await redis.command("config", "set", "maxmemory", "1")
        bodies = await asyncio.gather(*(node.whole(APP, blob.digest) for node in nodes))
        assert all(right(body, blob.digest) for body in bodies)
        assert [(await node.ready())[0] for node in nodes] == [200, 200]


async def test_node_without_room_is_an_edge(anonymous, redis, tmp_path):
    """It passes on what another node has, without upstream, and nobody is sent to it for that."""
    blob = anonymous.add_synthetic_blob(APP, 6 * MIB, 7)
    anonymous.add_image(APP, "1", [blob])
    small = {"storage": {"path": str(tmp_path / "small" / "store"), "min_free": "0", "max_size": "1MiB"}}
    async with cluster(anonymous, tmp_path, redis, count=2, workers=1) as (first, third):
        assert right(await first.whole(APP, blob.digest), blob.digest)
        async with Node(anonymous, tmp_path / "small", redis, workers=1, **small) as edge:
            await edge.joined()
            pull = await edge.blob(APP, blob.digest)
            assert right(await pull.rest(), blob.digest)
            assert edge.files("blobs") == []
            askers = await redis.command("lrange", f"rm:{{default}}:1:at:{blob.digest}", "0", "-1")
            assert f"http://127.0.0.1:{edge.node_port}" not in askers
            assert right(await third.whole(APP, blob.digest), blob.digest)
        assert anonymous.bytes_sent(blob.digest) == blob.size


@pytest.mark.full
async def test_edge_is_the_first_to_ask(anonymous, redis, tmp_path):
    """A node that cannot store a blob owns no lease: the next one fetches it for all others."""
    blob = anonymous.add_synthetic_blob(APP, 6 * MIB, 7)
    anonymous.add_image(APP, "1", [blob])
    small = {"storage": {"path": str(tmp_path / "small" / "store"), "min_free": "0", "max_size": "1MiB"}}
    async with (
        cluster(anonymous, tmp_path, redis, count=2, workers=1) as nodes,
        Node(anonymous, tmp_path / "small", redis, workers=1, **small) as edge,
    ):
        await edge.joined()
        assert right(await edge.whole(APP, blob.digest), blob.digest)
        asked = len(gets(anonymous, blob.digest))
        bodies = await asyncio.gather(*(node.whole(APP, blob.digest) for node in nodes))
        assert all(right(body, blob.digest) for body in bodies)
        assert len(gets(anonymous, blob.digest)) == asked + 1


@pytest.mark.full
async def test_node_of_a_later_version(anonymous, redis, tmp_path):
    """Values that it does not understand count as none; facts that it does not know are passed on."""
    blob = anonymous.add_synthetic_blob(APP, MIB, 7)
    anonymous.add_image(APP, "1", [blob])
    later = "http://127.0.0.1:1"
    async with cluster(anonymous, tmp_path, redis, count=1, workers=1) as (node,):
        await redis.command("set", f"rm:{{default}}:1:b:{blob.digest}", "split|v2;x|somewhere", "px", "60000")
        await redis.command("set", f"rm:{{default}}:1:node:{later}", json.dumps({"version": "9", "mood": "good"}), "ex", "60")
        (now, *_) = await redis.command("time")
        await redis.command("zadd", "rm:{default}:1:nodes", now, later)
        assert right(await node.whole(APP, blob.digest), blob.digest)
        found = json.loads(await node.admin("/api/v1/nodes"))["nodes"]
        assert {"name": later, "version": "9", "mood": "good", "self": False} in found


async def test_long_chain_is_refused(anonymous, redis, tmp_path):
    """A node that is twelve hops away from upstream is no parent: the next one takes the lease over."""
    blob = anonymous.add_synthetic_blob(APP, MIB, 7)
    anonymous.add_image(APP, "1", [blob])
    asked = []

    async def answer(request):
        asked.append(request.path)
        return web.Response(
            status=206, body=bytes(MIB), headers={"X-Mirror-Hop": "12", "Content-Range": f"bytes 0-{MIB - 1}/{MIB}"}
        )

    runner = web.ServerRunner(web.Server(answer))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    far = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        async with cluster(anonymous, tmp_path, redis, count=1, workers=1) as (node,):
            await redis.command("set", f"rm:{{default}}:1:b:{blob.digest}", f"own|x|{far}|", "px", "60000")
            assert right(await node.whole(APP, blob.digest), blob.digest)
            await node.logged("lease_taken_over")
            assert len(asked) == 1
            assert "node_poisoned" not in node.log
    finally:
        await runner.cleanup()


@pytest.mark.full
async def test_node_says_how_far_it_is_from_upstream(anonymous, redis, tmp_path):
    """The last of a chain counts the nodes before it."""
    blob = anonymous.add_synthetic_blob(APP, 4 * MIB, 7)
    anonymous.add_image(APP, "1", [blob])
    gate = anonymous.gate(Rule(kind="blob", method="GET"), after=2 * MIB)
    async with cluster(anonymous, tmp_path, redis, count=3, workers=1, cluster={"fan_out": 1}) as nodes:
        pulls = []
        for node in nodes:
            pulls.append(await node.blob(APP, blob.digest))
            await pulls[-1].read(MIB)
        path = f"/v2/docker.io/{APP}/blobs/{blob.digest}"
        found = []
        for node in nodes:
            url = f"http://127.0.0.1:{node.node_port}"
            token = sign(SECRET.encode(), SignedRequest("GET", path, "bytes=0-9", url), time.time(), os.urandom(16).hex())
            async with node.session.get(url + path, headers={"Range": "bytes=0-9", "Authorization": token}) as response:
                found.append(response.headers["X-Mirror-Hop"])
        assert found == ["0", "1", "2"]
        gate.release()
        assert all([right(await pull.rest(), blob.digest) for pull in pulls])
