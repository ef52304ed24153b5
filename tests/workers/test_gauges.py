"""What /metrics says of the store when several workers share it."""

import os

import pytest

from tests.support.names import APP, TAG, blob_path
from tests.workers.cluster import Cluster


@pytest.fixture
async def cluster(hub, tmp_path):
    async with Cluster(hub, tmp_path, storage={"max_size": "1GiB"}) as running:
        yield running


async def test_the_store_is_not_empty(hub, cluster):
    """Whichever worker is asked, what the store holds is told, and what it may hold."""
    image = hub.add_image(APP, "1", layers=[os.urandom(100_000)])
    await (await cluster.pull(TAG)).rest()
    await (await cluster.pull(blob_path(image.layers[0]))).rest()
    for worker in cluster.workers():
        found = await cluster.metrics(worker)
        assert found["registry_mirror_storage_blobs"] == 2
        assert found["registry_mirror_storage_bytes"] > 100_000
        assert found["registry_mirror_storage_limit_bytes"] == 1 << 30
        assert found["registry_mirror_storage_min_free_ok"] == 1
