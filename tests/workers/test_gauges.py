"""What /metrics says of the store when several workers share it."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support import families
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


async def test_families_of_two_workers(hub, tmp_path):
    """Two workers show what one does: the same families with the same labels, and the processes together."""
    (tmp_path / "password").write_text("secret")
    hub.users["me"] = "secret"
    hub.ratelimit_limit, hub.ratelimit_remaining = 100, 50
    account = {"username": "me", "password_file": str(tmp_path / "password")}
    registry = {"upstreams": [hub.url], "token_hosts": [hub.token_host], **account}
    async with Cluster(hub, tmp_path, registries={"docker.io": registry}) as cluster:
        image = hub.add_image(APP, "1", layers=[os.urandom(100_000)])
        for path in (TAG, blob_path(image.layers[0]), f"/v2/{APP}/tags/list"):
            await (await cluster.pull(path)).rest()
        # The worker that has pulled publishes within a second what the other one is asked for.
        await eventually(cluster.metrics, holds=lambda seen: any("ratelimit_remaining" in name for name in seen))
        families.check((await cluster.admin("/metrics")).decode())
        found = await cluster.metrics()
    assert found["process_resident_memory_bytes"] > 2 * 20e6
    assert found["process_start_time_seconds"] < time.time() < found["process_start_time_seconds"] + 3600


async def test_refused_reload(cluster):
    """A configuration that the supervisor refuses reaches no worker, but each of them tells of it until one is accepted."""
    assert (await cluster.metrics())["registry_mirror_config_reload_ok"] == 1
    good = cluster.file.read_text()
    for text, ok in (("nonsense: true", 0), (good, 1)):
        cluster.file.write_text(text)
        cluster.process.send_signal(signal.SIGHUP)
        for worker in cluster.workers():

            async def told(worker=worker):
                return (await cluster.metrics(worker))["registry_mirror_config_reload_ok"]

            await eventually(told, holds=lambda value, ok=ok: value == ok)
