"""What operators see of the bucket: `status`, `explain`, `/readyz` and the pages agree with what is in it."""

import functools

from mirror.cli.explaining import _facts
from mirror.cli.status import screen
from tests.mirror.buckets import key, keys, nothing_owed, pull
from tests.support.names import APP, TAG
from tests.support.waiting import eventually

MIB = 1 << 20


async def ask(mirror, path):
    """An answer of the admin API."""
    async with mirror.session.get(f"http://127.0.0.1:{mirror.admin_port}{path}") as response:
        assert response.status == 200
        return await response.json()


async def page(mirror, path):
    """The text of a page."""
    async with mirror.session.get(f"http://127.0.0.1:{mirror.admin_port}{path}") as response:
        return await response.text()


async def explained(mirror):
    found = await ask(mirror, f"/api/v1/explain?image={APP}:1")
    return found["objects"], dict(_facts(found))["bucket"]


async def test_image_of_the_bucket(hub, bucket, kept, opened):
    """Complete, in part, and gone; whether the store has it or not."""
    size = kept.config.size + kept.layers[0].size + len(kept.raw)
    async with opened("second") as mirror:
        found, line = await explained(mirror)
        assert (found["manifests"], found["blobs"], found["missing"], found["bytes"]) == (1, 2, [], size)
        assert found["tag"]["digest"] == kept.digest
        assert line.startswith("complete, 3MiB")
        assert "in 3 objects; its tag was checked" in line
        assert "read from the bucket" in (await ask(mirror, f"/api/v1/explain?image={APP}@{kept.digest}"))["pull"]["why"]
        assert "in 3 objects; its tag was checked" in await page(mirror, f"/image?name={APP}:1")

        await mirror.get(TAG)
        bucket.delete(key("blobs", kept.layers[0].digest))
        found, line = await explained(mirror)
        assert found["missing"] == [kept.layers[0].digest]
        assert line.startswith("in part, 1 blobs missing")
        for name in keys(kept):
            bucket.delete(name)
        found, line = await explained(mirror)
        assert (found["manifests"], found["blobs"]) == (0, 0)
        assert line.startswith("nothing of it; its tag was checked")


async def test_mirror_without_a_bucket(hub, mirror):
    """It says nothing of one."""
    hub.add_image(APP, "1")
    found, line = await explained(mirror)
    assert (found, line) == (None, "")
    assert (await ask(mirror, "/api/v1/status"))["objects"] is None


async def test_figures(hub, bucket, opened, proxy, monkeypatch):
    """Bytes, what is owed, and why the bucket is down."""
    monkeypatch.setattr("mirror.objects.sweeper._TICK_S", 0.05)
    monkeypatch.setattr("mirror.objects.sweeper._LOOK_INTERVAL_S", 0.05)
    image = hub.add_image(APP, "1", [hub.add_synthetic_blob(APP, 3 * MIB, 1)])
    async with opened("first", objects={"max_size": "1GiB"}) as mirror:
        await pull(mirror, image)
        await nothing_owed(mirror)
        size = image.config.size + image.layers[0].size + len(image.raw)
        found = await eventually(
            lambda: ask(mirror, "/api/v1/status"), "counted", holds=lambda found: found["objects"]["bytes"] == size
        )
        nothing = {"objects": 0, "bytes": 0}
        bucket_of = {"up": True, "problem": None, "bytes": size, "max_size": 1 << 30, "owed": 0, "deleted": nothing}
        assert found["objects"] == bucket_of
        assert any(line.startswith("bucket") and "3MiB of 1GiB" in line for line in screen(found, 100))
        assert "<h2>Bucket</h2>" in await page(mirror, "/")

        proxy.status = 403
        other = hub.add_image(APP, "2", [hub.add_synthetic_blob(APP, MIB, 2)])
        await pull(mirror, other, "2")
        await eventually(functools.partial(mirror.metric, "objects_up"), holds=lambda up: not up)
        found = await eventually(lambda: ask(mirror, "/api/v1/status"), "owed", holds=lambda found: found["objects"]["owed"] >= 3)
        assert "403 Forbidden" in found["objects"]["problem"]
        assert any("DOWN: " in line and "uploads owed" in line for line in screen(found, 400))
        assert "The bucket is not used" in await page(mirror, "/")
        ready = await ask(mirror, "/readyz")
        assert ready["cluster"]["objects"] == "down"
        assert ready["cluster"]["owed"] >= 3
        found, line = await explained(mirror)
        assert line.startswith("not known: ")
