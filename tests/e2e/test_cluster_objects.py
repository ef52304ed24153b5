"""Nodes of a cluster with a bucket: one upload for all of them, and what is left when nodes, Redis and upstream are gone."""

import asyncio
import contextlib
import hashlib
import itertools
import shutil
import signal
import time

import pytest

from mirror.objects.owed import OwedUploads
from tests.e2e.harness.cluster import Node, cluster
from tests.e2e.harness.whole_nodes import WholeNode
from tests.support.buckets import BucketProxy, BucketServer
from tests.support.waiting import eventually

pytestmark = pytest.mark.e2e

APP = "library/app"
MIB = 1 << 20
_NAMES = itertools.count()


@pytest.fixture(scope="module")
def buckets():
    """An S3 server."""
    running = BucketServer()
    yield running
    running.close()


@pytest.fixture
def bucket(buckets):
    """An empty bucket."""
    return buckets.bucket(f"cluster-{next(_NAMES)}")


@pytest.fixture
def objects(buckets, bucket, tmp_path):
    """The section of the configuration."""
    file = tmp_path / "key"
    file.write_text("id\nsecret\n")
    return {"url": f"s3://{bucket.name}", "endpoint": f"http://127.0.0.1:{buckets.port}", "access_key_file": str(file)}


def names(image):
    """The names of an image's objects."""
    named = [("manifests", image.digest), *(("blobs", blob.digest) for blob in (*image.layers, image.config))]
    return {f"1/{kind}/sha256/{digest[7:9]}/{digest[7:]}" for kind, digest in named}


def right(body, digest):
    return f"sha256:{hashlib.sha256(body).hexdigest()}" == digest


async def pull(node, image, reference="1"):
    """Pull an image from a node."""
    status, _, body = await node.get(f"/v2/{APP}/manifests/{reference}")
    assert (status, right(body, image.digest)) == (200, True)
    for blob in (*image.layers, image.config):
        assert right(await node.whole(APP, blob.digest), blob.digest)


async def uploaded(bucket, image):
    """Wait until an image, and the record of its tag, are in the bucket."""
    await eventually(
        bucket.objects, "uploaded", holds=lambda found: names(image) <= found.keys() and any("/tags/" in name for name in found)
    )


async def requests(nodes, op, *statuses):
    """The requests to the bucket of all nodes."""
    metrics = [await node.metrics() for node in nodes]
    return sum(
        seen.get(f'registry_mirror_objects_requests_total{{op="{op}",status="{status}"}}', 0)
        for seen in metrics
        for status in statuses
    )


async def test_one_upload_for_all_nodes(anonymous, redis, bucket, objects, tmp_path):
    """The node that has fetched a blob uploads it; the others find that in Redis, and do not ask the bucket."""
    image = anonymous.add_image(APP, "1", [anonymous.add_synthetic_blob(APP, size, size) for size in (12 * MIB, MIB)])
    async with cluster(anonymous, tmp_path, redis, objects=objects) as nodes:
        await asyncio.gather(*(pull(node, image) for node in nodes))
        await uploaded(bucket, image)
        stored = await redis.command("keys", "*:s3:*")
        assert {key.rpartition(":s3:")[2] for key in stored} >= {image.digest, *(layer.digest for layer in image.layers)}
        assert await redis.command("zcard", stored[0].partition(":s3:")[0] + ":todo") == ["0"]
        await eventually(lambda: redis.command("get", stored[0].partition(":s3:")[0] + ":s3bytes"), "counted")
        # A layer in parts, a layer, config and manifest; the mark of the bucket, and the record of the tag, by each node.
        assert await requests(nodes, "put", "ok") <= 4 + 1 + 3
        assert await requests(nodes, "put", "exists") <= 2

        # A purge that one node is told has the bucket forget the tag, and every node delete what nobody needs, in an hour.
        await nodes[1].admin("/api/v1/purge", method="POST", match=f"docker.io/{APP}:1", wait=True)
        await eventually(bucket.objects, "no record", holds=lambda found: not any("/tags/" in name for name in found))
        for node in nodes:
            owed = OwedUploads(str(node.store / "index"))
            assert image.layers[0].digest in {str(digest) for digest, _ in owed.purged(time.time() + 60, 100)}
            owed.close()


async def test_all_nodes_are_replaced_and_redis_is_empty(anonymous, redis, bucket, objects, tmp_path):
    """After one check of the tag all comes from the bucket, to each node; upstream sends no blob and no manifest."""
    image = anonymous.add_image(APP, "1", [anonymous.add_synthetic_blob(APP, 9 * MIB, 1)])
    async with cluster(anonymous, tmp_path, redis, count=2, objects=objects) as nodes:
        await pull(nodes[0], image)
        await uploaded(bucket, image)
    redis.signal(signal.SIGKILL)
    redis.start()
    for number in range(2):
        shutil.rmtree(tmp_path / f"node-{number}")
    anonymous.reset_counters()
    async with cluster(anonymous, tmp_path, redis, count=2, objects=objects, tags={"ttl": "1h"}) as nodes:
        await asyncio.gather(*(pull(node, image) for node in nodes))
    asked = [(seen.method, seen.path) for seen in anonymous.requests if seen.kind != "ping"]
    assert asked == [("HEAD", f"/v2/{APP}/manifests/1")]


async def test_fresh_nodes_while_upstream_is_down(anonymous, redis, bucket, objects, tmp_path):
    """They serve by tag, by digest, and a blob at a node that has not been asked for its manifest."""
    image = anonymous.add_image(APP, "1", [anonymous.add_synthetic_blob(APP, 9 * MIB, 1)])
    async with cluster(anonymous, tmp_path, redis, count=1, objects=objects) as (node,):
        await pull(node, image)
        await uploaded(bucket, image)
    redis.signal(signal.SIGKILL)
    redis.start()
    shutil.rmtree(tmp_path / "node-0")
    await anonymous.stop()
    async with cluster(anonymous, tmp_path, redis, objects=objects) as (first, second, third):
        await pull(first, image)
        await pull(second, image, image.digest)
        assert right(await third.whole(APP, image.layers[0].digest), image.layers[0].digest)
        status, _, _ = await third.get(f"/v2/library/other/blobs/{image.layers[0].digest}")
        assert status == 503


@pytest.mark.full
async def test_node_dies_in_mid_upload(anonymous, redis, buckets, bucket, objects, tmp_path):
    """Nothing of the object is visible. The node uploads it when it is back, once its claim has run out."""
    image = anonymous.add_image(APP, "1", [anonymous.add_synthetic_blob(APP, 20 * MIB, 1)])
    digest = image.layers[0].digest
    async with BucketProxy(buckets) as proxy:
        proxy.held = "partNumber=2"
        node = Node(anonymous, tmp_path / "node", redis, objects={**objects, "endpoint": proxy.url})
        async with node:
            await node.joined()
            await pull(node, image)
            await eventually(lambda: [line for line in proxy.seen if proxy.held in line], "the upload")
            node.kill()
            await node.ended()
        assert not [name for name in bucket.objects() if name.endswith(digest[7:])]
        proxy.held = None
        (claims,) = await redis.command("keys", "*:todo")
        # As if its minute had passed.
        await redis.command("del", claims)
        async with node:
            await uploaded(bucket, image)
            assert right(bucket.get(f"1/blobs/sha256/{digest[7:9]}/{digest[7:]}"), digest)


async def test_owner_dies_before_its_upload(anonymous, redis, buckets, bucket, objects, tmp_path, monkeypatch):
    """Another node that holds the blob uploads it, once the turn of the owner has passed."""
    for module in ("service.objects", "objects.uploader"):
        monkeypatch.setattr(f"mirror.{module}.TURN_S", 1.0)
    image = anonymous.add_image(APP, "1", [anonymous.add_synthetic_blob(APP, 9 * MIB, 1)])
    layer = image.layers[0]
    async with BucketProxy(buckets) as proxy, contextlib.AsyncExitStack() as stack:
        proxy.held = "?uploads"
        own = {**objects, "endpoint": proxy.url}
        owner = await stack.enter_async_context(Node(anonymous, tmp_path / "owner", redis, workers=1, objects=own))
        other = await stack.enter_async_context(WholeNode(anonymous, tmp_path / "other", redis, objects=objects))
        await asyncio.gather(owner.joined(), other.joined())
        await pull(owner, image)
        await eventually(lambda: [line for line in proxy.seen if proxy.held in line], "its upload begins")
        assert (await other.get(f"/v2/{APP}/blobs/{layer.digest}")).sha256 == layer.digest
        owner.kill()
        await owner.ended()
        assert anonymous.count(method="GET", kind="blob") == 2
        assert not any(layer.digest[7:] in name for name in bucket.objects())
        # As if the minute of the claim had passed.
        await redis.command("del", *await redis.command("keys", "*:todo"), "none")
        await eventually(
            bucket.objects, "uploaded", holds=lambda found: f"1/blobs/sha256/{layer.digest[7:9]}/{layer.digest[7:]}" in found
        )


async def test_node_with_a_small_disk(anonymous, redis, bucket, objects, tmp_path):
    """It passes everything through, from the bucket and from other nodes; upstream sends nothing twice."""
    image = anonymous.add_image(APP, "1", [anonymous.add_synthetic_blob(APP, size * MIB, size) for size in (16, 4)])
    async with cluster(anonymous, tmp_path, redis, count=1, objects=objects) as (whole,):
        await pull(whole, image)
        await uploaded(bucket, image)
        anonymous.reset_counters()
        (tmp_path / "edge").mkdir()
        small = {"max_size": "1MiB", "path": str(tmp_path / "edge" / "store")}
        async with Node(anonymous, tmp_path / "edge" / "node", redis, objects=objects, storage=small) as edge:
            await edge.joined()
            await pull(edge, image)
            await pull(edge, image)
            assert anonymous.count(method="GET", kind="blob") == 0
            await whole.__aexit__()
            await redis.command("flushall")
            await pull(edge, image)
            assert anonymous.count(method="GET", kind="blob") == 0
