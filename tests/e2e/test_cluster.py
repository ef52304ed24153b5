"""Nodes of a cluster with a real Redis: one fetch for all, and what happens when a node or Redis dies, hangs or lies."""

import asyncio
import hashlib
import signal
import ssl
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.harness.cluster import cluster
from tests.e2e.harness.skopeo import Skopeo
from tests.fakehub import Rule
from tests.support.certificates import Authority
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

APP = "library/app"
MIB = 1 << 20
# Between what upstream has sent and what other nodes have of it lie the buffers of two connections.
BUFFERED = 4 * MIB


def right(body, digest):
    return f"sha256:{hashlib.sha256(body).hexdigest()}" == digest


def gets(hub, digest):
    """The requests for a blob that upstream has answered with bytes."""
    return [seen for seen in hub.find(method="GET", kind="blob") if seen.digest == digest and seen.status in (200, 206)]


async def takeovers(nodes, *reasons):
    """How often nodes have taken a lease from another one for these reasons."""
    metrics = [await node.metrics() for node in nodes]
    return sum(seen[f'registry_mirror_cluster_takeovers_total{{reason="{reason}"}}'] for seen in metrics for reason in reasons)


async def test_cold_image_asked_of_all_nodes_at_once(anonymous, redis, tmp_path):
    """Three real clients at three nodes: upstream sends each manifest and each byte of a blob once."""
    layers = [anonymous.add_synthetic_blob(APP, size, seed) for seed, size in enumerate((12 * MIB, 3 * MIB, 50_000))]
    image = anonymous.add_image(APP, "1", layers)
    async with cluster(anonymous, tmp_path, redis) as nodes:
        clients = [Skopeo(tmp_path / f"skopeo-{node.port}", node.port) for node in nodes]
        anonymous.reset_counters()
        copies = await asyncio.gather(*(asyncio.to_thread(client.copy, f"docker.io/{APP}:1") for client in clients))
        assert copies[0] == copies[1] == copies[2]
        for blob in (*layers, image.config):
            assert anonymous.bytes_sent(blob.digest) == blob.size
        assert anonymous.count(method="GET", kind="manifest") == 1
        assert anonymous.count(method="HEAD", kind="blob") == 0
        for node in nodes:
            await eventually(node.metrics, "three nodes", holds=lambda seen: seen["registry_mirror_cluster_nodes"] == 3)
        # What was fetched is noted as held, and nobody owns anything any more.
        await eventually(redis.states, "settled", holds=lambda states: set(states) == {"held"})


@pytest.mark.parametrize(
    ("number", "reasons", "stall"), [(signal.SIGKILL, ("cut", "connect"), "15s"), (signal.SIGSTOP, ("timeout",), "6s")]
)
async def test_owner_dies_or_hangs_in_mid_blob(number, reasons, stall, anonymous, redis, tmp_path):
    """The others go on from the byte that they have, one of them from upstream."""
    blob = anonymous.add_synthetic_blob(APP, 24 * MIB, 7)
    anonymous.add_image(APP, "1", [blob])
    gate = anonymous.gate(Rule(kind="blob", method="GET"), after=12 * MIB)
    async with cluster(anonymous, tmp_path, redis, cluster={"stall_timeout": stall}) as (owner, *others):
        first = await owner.blob(APP, blob.digest)
        followers = [await node.blob(APP, blob.digest) for node in others]
        for pull in (first, *followers):
            await pull.read(8 * MIB)
        assert len(gets(anonymous, blob.digest)) == 1
        owner.kill(number)
        bodies = await asyncio.gather(*(pull.rest() for pull in followers))
        owner.kill(signal.SIGKILL)
        gate.release()
        assert all(right(body, blob.digest) for body in bodies)
        _, *more = gets(anonymous, blob.digest)
        assert len(more) == 1, [seen.range for seen in more]
        assert more[0].body_bytes_sent <= blob.size - 8 * MIB
        # A worker publishes its figures for the other one each second.
        await eventually(lambda: takeovers(others, *reasons), "one takeover", holds=lambda count: count == 1)
        await first.close()


async def test_slow_upstream_is_no_dead_node(anonymous, redis, tmp_path):
    """While upstream pauses for longer than a node may, nobody takes the fetch over: the owner says that it waits."""
    blob = anonymous.add_synthetic_blob(APP, 4 * MIB, 8)
    anonymous.add_image(APP, "1", [blob])
    gate = anonymous.gate(Rule(kind="blob", method="GET"), after=2 * MIB)
    async with cluster(anonymous, tmp_path, redis, count=2, workers=1, cluster={"stall_timeout": "6s"}) as nodes:
        pulls = [asyncio.create_task(node.whole(APP, blob.digest)) for node in nodes]
        await eventually(lambda: anonymous.bytes_sent(blob.digest) == 2 * MIB)
        # Longer than the follower waits for a node that says nothing.
        await asyncio.sleep(6.5)
        gate.release()
        assert all(right(body, blob.digest) for body in await asyncio.gather(*pulls))
        assert len(gets(anonymous, blob.digest)) == 1


async def test_redis_dies_in_mid_blob_and_comes_back_empty(anonymous, redis, tmp_path):
    """Streams need no Redis; without it each node fetches for itself, and with an empty one they are a cluster again."""
    blobs = [anonymous.add_synthetic_blob(APP, 6 * MIB, seed) for seed in range(3)]
    anonymous.add_image(APP, "1", blobs)
    gate = anonymous.gate(Rule(kind="blob", method="GET"), after=3 * MIB)
    async with cluster(anonymous, tmp_path, redis) as nodes:
        pulls = [await node.blob(APP, blobs[0].digest) for node in nodes]
        redis.signal(signal.SIGKILL)
        gate.release()
        assert all([right(await pull.rest(), blobs[0].digest) for pull in pulls])
        assert anonymous.bytes_sent(blobs[0].digest) == blobs[0].size

        bodies = await asyncio.gather(*(node.whole(APP, blobs[1].digest) for node in nodes))
        assert all(right(body, blobs[1].digest) for body in bodies)
        assert anonymous.bytes_sent(blobs[1].digest) <= len(nodes) * blobs[1].size
        for node in nodes:
            assert (await node.ready())[0] == 200

        redis.start()
        for node in nodes:
            await eventually(
                lambda node=node: node.log.count('"cluster_joined"') == 2 + node.log.count('"cluster_alone"'), "again"
            )
        bodies = await asyncio.gather(*(node.whole(APP, blobs[2].digest) for node in nodes))
        assert all(right(body, blobs[2].digest) for body in bodies)
        assert anonymous.bytes_sent(blobs[2].digest) == blobs[2].size


async def test_redis_hangs(anonymous, redis, tmp_path):
    """A pull waits less than a second for a Redis that accepts calls and does not answer; then nobody waits for it."""
    blobs = [anonymous.add_synthetic_blob(APP, 100_000, seed) for seed in range(8)]
    anonymous.add_image(APP, "1", blobs)
    async with cluster(anonymous, tmp_path, redis, count=2, cluster={"redis": {"timeout": "250ms"}}) as nodes:
        redis.signal(signal.SIGSTOP)
        for blob in blobs:
            bodies = await asyncio.gather(*(node.whole(APP, blob.digest) for node in nodes))
            assert all(right(body, blob.digest) for body in bodies)
        for node in nodes:
            await eventually(node.metrics, "alone", holds=lambda seen: seen["registry_mirror_cluster_alone"] == 1)
        redis.signal(signal.SIGCONT)
        for node in nodes:
            await node.joined()


@pytest.mark.parametrize("size", [50_000, 5 * MIB])
async def test_wrong_bytes_of_a_node(size, anonymous, redis, tmp_path):
    """A node whose disk has changed a byte costs its clients nothing, not even a resume: upstream has the blob."""
    blob = anonymous.add_synthetic_blob(APP, size, 3)
    anonymous.add_image(APP, "1", [blob])
    async with cluster(anonymous, tmp_path, redis, count=2) as (liar, other):
        assert right(await liar.whole(APP, blob.digest), blob.digest)
        await eventually(redis.states, "settled", holds=lambda states: states == ["held"])
        (path,) = [path for path in liar.files("blobs") if path.name == blob.digest.partition(":")[2]]
        data = bytearray(path.read_bytes())
        data[size // 2] ^= 1
        path.chmod(0o600)
        path.write_bytes(data)

        # A client has not got a byte of the damaged chunk: it comes from upstream, as does what follows.
        assert right(await other.whole(APP, blob.digest), blob.digest)
        assert len(gets(anonymous, blob.digest)) == 2
        await other.logged("node_poisoned")
        await eventually(other.metrics, "counted", holds=lambda seen: seen["registry_mirror_cluster_poisoned_total"] == 1)


async def test_owner_stops_in_an_orderly_way(anonymous, redis, tmp_path):
    """It serves what other nodes read until they have it, and takes no new requests; nobody asks upstream again."""
    blob = anonymous.add_synthetic_blob(APP, 12 * MIB, 9)
    anonymous.add_image(APP, "1", [blob])
    gate = anonymous.gate(Rule(kind="blob", method="GET"), after=6 * MIB)
    async with cluster(anonymous, tmp_path, redis, count=2) as (owner, other):
        first = await owner.blob(APP, blob.digest)
        follower = await other.blob(APP, blob.digest)
        await follower.read(4 * MIB)
        owner.signal(signal.SIGTERM)
        await owner.logged("draining", 2)
        gate.release()
        assert right(await first.rest(), blob.digest)
        assert right(await follower.rest(), blob.digest)
        assert anonymous.bytes_sent(blob.digest) == blob.size
        assert await owner.ended() == 0
        assert await redis.command("keys", f"*node:*{owner.node_port}") == []


async def test_node_in_the_middle_dies(anonymous, redis, tmp_path):
    """Its children go on from the node above it; the lease is not touched, and upstream sends nothing again."""
    blob = anonymous.add_synthetic_blob(APP, 16 * MIB, 5)
    anonymous.add_image(APP, "1", [blob])
    gate = anonymous.gate(Rule(kind="blob", method="GET"), after=8 * MIB)
    async with cluster(anonymous, tmp_path, redis, count=4, workers=1, cluster={"fan_out": 1}) as nodes:
        pulls = []
        for node in nodes:
            pulls.append(await node.blob(APP, blob.digest))
            await pulls[-1].read(5 * MIB)
        nodes[1].process.kill()
        await nodes[1].ended()
        gate.release()
        bodies = [await pull.rest() for pull in (pulls[0], *pulls[2:])]
        assert all(right(body, blob.digest) for body in bodies)
        assert anonymous.bytes_sent(blob.digest) == blob.size
        await pulls[1].close()
        assert all("lease_taken_over" not in node.log for node in nodes)


async def test_new_owner_instead_of_one_that_stops(anonymous, redis, tmp_path):
    """While a node drains, a blob that it holds has another owner at the next request."""
    held, slow = (anonymous.add_synthetic_blob(APP, 3 * MIB, seed) for seed in range(2))
    anonymous.add_image(APP, "1", [held, slow])
    async with cluster(anonymous, tmp_path, redis, workers=1) as (first, *others):
        assert right(await first.whole(APP, held.digest), held.digest)
        gate = anonymous.gate(Rule(kind="blob", method="GET"), after=2 * MIB)
        last = await first.blob(APP, slow.digest)
        first.signal(signal.SIGTERM)
        await first.logged("draining")
        bodies = await asyncio.gather(*(node.whole(APP, held.digest) for node in others))
        assert all(right(body, held.digest) for body in bodies)
        assert len(gets(anonymous, held.digest)) == 2
        gate.release()
        assert right(await last.rest(), slow.digest)


async def test_node_with_another_secret_is_by_itself(anonymous, redis, tmp_path):
    """It is refused by the others, and serves its clients all the same."""
    blob = anonymous.add_synthetic_blob(APP, 2 * MIB, 6)
    anonymous.add_image(APP, "1", [blob])
    async with cluster(anonymous, tmp_path, redis, count=2, workers=1) as (first, other):
        assert right(await first.whole(APP, blob.digest), blob.digest)
        Path(other.settings["cluster"]["secret_file"]).write_text("another secret of forty characters or more")
        # Read again with a beat.
        body = await eventually(lambda: _pulled_alone(other, first, blob), "a refusal", holds=bool)
        assert right(body, blob.digest)
        # And says so.
        _, details = await other.ready()
        assert details["cluster"]["refused_by"] == f"http://127.0.0.1:{first.node_port}"
        assert (await other.metrics())["registry_mirror_cluster_refused_total"] >= 1
        await other.logged("node_refuses")


async def _pulled_alone(other, first, blob):
    """What a node gets after a purge; None until it is refused by the first."""
    await other.admin("/api/v1/purge", method="POST", match=f"docker.io/{APP}")
    for path in other.files("blobs"):
        path.unlink()
    body = await other.whole(APP, blob.digest)
    return body if "node_refused" in first.log else None


async def test_tls_between_nodes(anonymous, redis, tmp_path):
    """With certificates of one authority; nobody else gets as far as a request."""
    authority = Authority(tmp_path / "authority")
    certificate, key = authority.issue("node", "DNS:some.other.name")
    tls = {"certificate": str(certificate), "key": str(key), "ca": str(authority.certificate)}
    blob = anonymous.add_synthetic_blob(APP, 2 * MIB, 6)
    anonymous.add_image(APP, "1", [blob])
    async with cluster(anonymous, tmp_path, redis, count=2, workers=1, cluster={"tls": tls}) as nodes:
        bodies = await asyncio.gather(*(node.whole(APP, blob.digest) for node in nodes))
        assert all(right(body, blob.digest) for body in bodies)
        assert anonymous.bytes_sent(blob.digest) == blob.size
        stranger = ssl.create_default_context(cafile=authority.certificate)
        stranger.check_hostname = False
        with pytest.raises(aiohttp.ClientError):
            async with nodes[0].session.get(f"https://127.0.0.1:{nodes[0].node_port}/", ssl=stranger) as response:
                await response.read()
