"""What /metrics says of the store when several workers share it."""

import os
import signal
from pathlib import Path

import pytest

from tests.support.names import APP, TAG, blob_path
from tests.support.waiting import eventually
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


async def test_dead_workers_leave_no_sheets(hub, tmp_path, monkeypatch):
    """What a worker had counted when it was killed stays in the metrics, and its sheet does not."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    async with Cluster(hub, tmp_path) as cluster:
        hub.add_image(APP, "1")
        (sheets,) = Path(tmp_path / "temporary").glob("registry-mirror-*")
        for killed in range(3):
            worker = cluster.workers()[0]
            await (await cluster.pull(TAG, worker)).rest()
            await cluster.metrics(worker)
            os.kill(worker, signal.SIGKILL)
            await cluster.logged('"serving"', 3 + killed)
            seen = await cluster.metrics(cluster.workers()[0])
            assert sum(value for name, value in seen.items() if name.startswith("registry_mirror_requests_total")) == killed + 1
        await eventually(
            lambda: len(list(sheets.glob("*.json"))) <= 4, "the sheets of two workers, of the last dead one, and a sum"
        )
