"""`fill: ranges` with several workers: each serves what its clients read, and each chunk is fetched once."""

import asyncio

import pytest

from tests.support.names import APP, MIB, blob_path, content, sha256
from tests.workers.cluster import Cluster

SIZE = 6 * MIB
DATA = content(SIZE)


@pytest.fixture
async def cluster(hub, tmp_path):
    registry = {"upstreams": [hub.url], "token_hosts": [hub.token_host], "fill": "ranges"}
    async with Cluster(hub, tmp_path, registries={"docker.io": registry}) as cluster:
        yield cluster


@pytest.fixture
def digest(hub):
    return hub.add_blob(APP, DATA)


async def read(cluster, digest, worker, start, stop):
    """What a worker answers to a range."""
    pull = await cluster.pull(blob_path(digest), worker, f"Range: bytes={start}-{stop - 1}")
    return await pull.rest()


def asked(hub):
    return [seen.range for seen in hub.find(host="cdn", method="GET")]


async def test_each_worker_fetches_what_its_clients_read(hub, cluster, digest):
    """The one that does not drive the download waits for nobody, and finds what the other one has fetched."""
    one, other = cluster.workers()
    assert await read(cluster, digest, one, 4 * MIB, 5 * MIB) == DATA[4 * MIB : 5 * MIB]
    async with asyncio.timeout(15):
        assert await read(cluster, digest, other, MIB, MIB + 10) == DATA[MIB : MIB + 10]
        assert await read(cluster, digest, other, 4 * MIB, 4 * MIB + 10) == DATA[4 * MIB : 4 * MIB + 10]
        assert await read(cluster, digest, one, 2 * MIB - 10, 2 * MIB) == DATA[2 * MIB - 10 : 2 * MIB]
    assert asked(hub) == [f"bytes={4 * MIB}-{5 * MIB - 1}", f"bytes={MIB}-{2 * MIB - 1}"]


async def test_warming_in_another_worker(hub, cluster, tmp_path, digest):
    """What fetches a blob for the store does so beside a worker that serves ranges of it only."""
    image = hub.add_image(APP, "1", layers=[DATA])
    one, other = cluster.workers()
    layer = image.layers[0].digest
    await read(cluster, layer, one, 3 * MIB, 4 * MIB)
    await cluster.admin("/api/v1/warm", other, "POST", images=[f"docker.io/{APP}:1"], platforms=["linux/amd64"])
    async with asyncio.timeout(15):
        while not any(path.name == layer.partition(":")[2] for path in cluster.files("blobs")):
            await asyncio.sleep(0.05)


async def test_the_whole_blob_in_another_worker(hub, cluster, digest):
    """A client of one worker gets all of a blob of which another worker serves ranges, verified and held."""
    one, other = cluster.workers()
    await read(cluster, digest, one, 3 * MIB, 4 * MIB)
    async with asyncio.timeout(15):
        assert sha256(await (await cluster.pull(blob_path(digest), other)).rest()) == digest
    assert sum(seen.body_bytes_sent for seen in hub.find(host="cdn", method="GET")) == SIZE
