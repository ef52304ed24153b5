"""A mirror with a bucket behind its store: what it keeps there, and what it takes from there instead of asking upstream."""

import functools
import json

import pytest
from aiohttp import ClientPayloadError

from mirror.core.checks import Check
from mirror.core.names import Repository, Tag
from mirror.service.objects import probe_bucket
from tests.mirror.buckets import key, nothing_owed, pull, sent, uploaded
from tests.support.names import APP, sha256
from tests.support.waiting import LIMIT, eventually

MIB = 1 << 20
OTHER = "library/other"


async def test_pulled_image_is_written_behind(hub, bucket, opened):
    """Under its digest, with its media type; a large blob in parts, and nothing that was not verified."""
    image = hub.add_image(APP, "1", [hub.add_synthetic_blob(APP, 20 * MIB, 1)])
    async with opened("first") as mirror:
        await pull(mirror, image)
        await uploaded(bucket, image)
        await nothing_owed(mirror)
        assert await mirror.metric("objects_requests_total", op="put", status="ok") == 5
    for blob in (*image.layers, image.config):
        assert sha256(bucket.get(key("blobs", blob.digest))) == blob.digest
    assert bucket.get("pre/fix/1/LAYOUT") == b"registry-mirror objects, layout 1\n"
    assert len(bucket.objects()) == 5
    with bucket.request("HEAD", key("manifests", image.digest)) as response:
        assert json.loads(bucket.get(key("manifests", image.digest)))["mediaType"] == response.headers["Content-Type"]


async def test_store_that_was_lost(hub, kept, opened):
    """The pulled image is served again, and upstream sends no byte of it: it is only asked whether it still grants it."""
    async with opened("second") as mirror:
        assert set(await pull(mirror, kept)) == {"MISS"}
        assert sent(hub, kept) == (0, 0)
        assert await mirror.metric("source_bytes_total", source="objects") == sum(
            blob.size for blob in (*kept.layers, kept.config)
        )


async def test_manifest_by_digest(hub, kept, opened):
    async with opened("second") as mirror:
        answer = await mirror.get(f"/v2/{APP}/manifests/{kept.digest}")
        assert (answer.status, answer.sha256) == (200, kept.digest)
        assert hub.count(method="GET", kind="manifest") == 0


async def test_repository_without_a_right(hub, kept, opened):
    """What lies in the bucket is served only to repositories to which upstream grants it."""
    hub.add_image(OTHER, "1")
    async with opened("second") as mirror:
        for path in (f"manifests/{kept.digest}", f"blobs/{kept.layers[0].digest}"):
            assert (await mirror.get(f"/v2/{OTHER}/{path}")).status == 404
        # Also once this store has it.
        await pull(mirror, kept)
        assert (await mirror.get(f"/v2/{OTHER}/blobs/{kept.layers[0].digest}")).status == 404


async def test_nobody_knows_the_right_while_upstream_is_down(hub, kept, opened):
    """The answer is 503, and nothing is remembered."""
    async with opened("second") as mirror:
        await hub.stop()
        assert (await mirror.get(f"/v2/{OTHER}/blobs/{kept.layers[0].digest}")).status == 503
        assert (await mirror.get(f"/v2/{OTHER}/manifests/{kept.digest}")).status == 503
        await hub.start()
        await mirror.recovered()
        hub.add_image(OTHER, "1", kept.layers)
        assert (await mirror.get(f"/v2/{OTHER}/blobs/{kept.layers[0].digest}")).status == 200


async def test_digests_while_upstream_is_down(hub, bucket, opened):
    """A repository is served what its tags named last, whatever is asked for first; nothing else, and nothing it has lost."""
    image = hub.add_image(APP, "1", [hub.add_synthetic_blob(APP, 2 * MIB, 1)])
    index = hub.add_image(f"{APP}/nested", "many", platforms=["linux/amd64"])
    (child,) = index.children.values()
    async with opened("first") as mirror:
        await pull(mirror, image)
        for digest in ("many", child.digest):
            assert (await mirror.get(f"/v2/{APP}/nested/manifests/{digest}")).status == 200
        await nothing_owed(mirror)
    await hub.stop()
    async with opened("second") as mirror:
        layer = image.layers[0].digest
        assert (await mirror.get(f"/v2/{APP}/blobs/{layer}")).sha256 == layer
        assert (await mirror.head(f"/v2/{APP}/manifests/{image.digest}")).status == 200
        assert (await mirror.get(f"/v2/{APP}/nested/manifests/{child.digest}")).sha256 == child.digest
        for path in (f"{APP}/manifests/{child.digest}", f"{APP}/nested/blobs/{layer}", f"{OTHER}/blobs/{layer}"):
            assert (await mirror.get(f"/v2/{path}")).status == 503
    async with opened("third", tags={"stale_if_error": "0s"}) as mirror:
        assert (await mirror.get(f"/v2/{APP}/blobs/{layer}")).status == 503


async def test_new_store_while_upstream_is_down(hub, bucket, opened):
    """What a tag named last is served, with all that the bucket has of it; and nothing to other repositories."""
    image = hub.add_image(APP, "1", [hub.add_synthetic_blob(APP, 2 * MIB, 1)])
    index = hub.add_image(OTHER, "many", platforms=["linux/amd64"])
    hub.add_image("library/third", "1")
    async with opened("first") as mirror:
        await pull(mirror, image)
        (child,) = (image.digest for image in index.children.values())
        assert (await mirror.get(f"/v2/{OTHER}/manifests/many")).status == 200
        assert (await mirror.get(f"/v2/{OTHER}/manifests/{child}")).status == 200
        await uploaded(bucket, image)
        await nothing_owed(mirror)
        names = [name for name in bucket.objects() if "/tags/" in name]
        assert sorted(name.rpartition("/library/")[2] for name in names) == ["app/1.json", "other/many.json"]
    await hub.stop()
    async with opened("second") as mirror:
        answer = await mirror.get(f"/v2/{APP}/manifests/1")
        assert (answer.status, answer.cache, answer.sha256) == (200, "STALE", image.digest)
        for blob in (*image.layers, image.config):
            assert (await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")).sha256 == blob.digest
        assert (await mirror.get(f"/v2/{OTHER}/manifests/many")).sha256 == index.digest
        assert (await mirror.get(f"/v2/{OTHER}/manifests/{child}")).sha256 == child
        for path in ("manifests/1", f"manifests/{image.digest}", f"blobs/{image.layers[0].digest}"):
            assert (await mirror.get(f"/v2/library/third/{path}")).status == 503


async def test_tag_of_the_bucket_is_a_hint(hub, bucket, opened):
    """Upstream is asked first, and its refusal is the answer."""
    image = hub.add_image(APP, "1", [hub.add_synthetic_blob(APP, 2 * MIB, 1)])
    async with opened("first") as mirror:
        await pull(mirror, image)
        await nothing_owed(mirror)
    hub.delete_tag(APP, "1")
    async with opened("second") as mirror:
        assert (await mirror.get(f"/v2/{APP}/manifests/1")).status == 404
    moved = hub.add_image(APP, "1", [hub.add_synthetic_blob(APP, MIB, 2)])
    async with opened("third") as mirror:
        assert (await mirror.get(f"/v2/{APP}/manifests/1")).sha256 == moved.digest


@pytest.mark.parametrize("record", [b"[" * 4000, b'{"checked": Infinity}', b"\xff"], ids=["deep", "endless", "no-text"])
async def test_record_that_is_none(record, hub, bucket, opened):
    """It is as if there were no record."""
    image = hub.add_image(APP, "1", [hub.add_synthetic_blob(APP, MIB, 1)])
    async with opened("first") as mirror:
        await pull(mirror, image)
        await nothing_owed(mirror)
    bucket.put(next(name for name in bucket.objects() if "/tags/" in name), record)
    await hub.stop()
    async with opened("second") as mirror:
        assert (await mirror.get(f"/v2/{APP}/manifests/1")).status == 503
        assert (
            await mirror.services.objects.inventory.image(Repository.parse("docker.io", APP), Tag.parse("1"), None)
        ).tag is None


async def test_refused_tag_leaves_the_bucket(hub, bucket, opened):
    """Upstream's refusal is its last answer: an outage after it brings the tag back nowhere."""
    image = hub.add_image(APP, "1", [hub.add_synthetic_blob(APP, MIB, 1)])
    async with opened("first", tags={"ttl": "0s"}) as mirror:
        await pull(mirror, image)
        await nothing_owed(mirror)
        record = next(name for name in bucket.objects() if "/tags/" in name)
        kept = bucket.get(record)
        hub.delete_tag(APP, "1")
        assert (await mirror.get(f"/v2/{APP}/manifests/1")).status == 404
        await eventually(lambda: bucket.get(record), "deleted", holds=lambda found: found is None)
        # As another mirror may have written it before.
        bucket.put(record, kept)
        await hub.stop()
        assert (await mirror.get(f"/v2/{APP}/manifests/1")).status in (404, 503)


async def test_wrong_object(hub, bucket, kept, opened):
    """It is never served as a whole: the blob comes from upstream, and replaces it."""
    layer, config = kept.layers[0], kept.config
    bucket.put(key("blobs", layer.digest), b"x" * layer.size)
    bucket.put(key("blobs", config.digest), b"short")
    bucket.put(key("manifests", kept.digest), b"{}")
    async with opened("second") as mirror:
        assert (await mirror.get(f"/v2/{APP}/manifests/1")).sha256 == kept.digest
        assert (await mirror.get(f"/v2/{APP}/blobs/{config.digest}")).sha256 == config.digest
        with pytest.raises(ClientPayloadError):
            await mirror.get(f"/v2/{APP}/blobs/{layer.digest}")
        assert (await mirror.get(f"/v2/{APP}/blobs/{layer.digest}")).sha256 == layer.digest
        await mirror.idle()
        for kind, digest in (("blobs", layer.digest), ("blobs", config.digest), ("manifests", kept.digest)):
            await eventually(lambda kind=kind, digest=digest: sha256(bucket.get(key(kind, digest)) or b"") == digest, kind)


async def test_lost_object(hub, bucket, kept, opened):
    """Upstream has it, and it is written again."""
    for name in bucket.objects():
        bucket.delete(name)
    async with opened("second") as mirror:
        await pull(mirror, kept)
        await uploaded(bucket, kept)
        assert await mirror.metric("objects_requests_total", status="absent") == 3


@pytest.mark.parametrize("status", [500, 503, 403, 301])
async def test_bucket_that_refuses(status, hub, kept, proxy, opened):
    """Upstream is asked; the bucket is not, until it answers again."""
    async with opened("second") as mirror:
        proxy.status = status
        await pull(mirror, kept)
        assert sent(hub, kept)[0] == sum(blob.size for blob in (*kept.layers, kept.config))
        await eventually(functools.partial(mirror.metric, "objects_up"), holds=lambda up: not up)
        proxy.status = 0
        await eventually(functools.partial(mirror.metric, "objects_up"))


async def test_bucket_that_does_not_exist(hub, proxy, opened):
    """It stays down: an answer that it does not exist is no answer of a bucket."""
    image = hub.add_image(APP, "1")
    async with opened("first", objects={"url": "s3://no-such-bucket"}) as mirror:
        await pull(mirror, image)
        await eventually(functools.partial(mirror.metric, "objects_up"), holds=lambda up: not up)
        seen = len(proxy.seen)
        await eventually(lambda: len(proxy.seen) > seen + 1, "asked again, and again")
        assert await mirror.metric("objects_up") == 0


async def test_probe(bucket, proxy, opened):
    """`check-config --probe` asks the bucket, and says what is wrong."""
    config = opened("first").config()
    assert await probe_bucket(config.objects) == Check("objects", ok=True, text=f"s3://{bucket.name}/pre/fix answers")
    missing = config.objects.model_copy(update={"url": "s3://no-such-bucket"})
    found = await probe_bucket(missing)
    assert not found.ok
    assert "no-such-bucket" in found.text
    proxy.refused = "list-type"
    found = await probe_bucket(config.objects)
    assert (found.ok, "max_size is not kept" in found.text) == (False, True)
    assert (await probe_bucket(config.objects.model_copy(update={"write": "off"}))).ok
    proxy.status = 403
    assert not (await probe_bucket(config.objects)).ok


async def test_bucket_away(hub, bucket, kept, proxy, opened):
    """A pull waits for nothing; what it owes is uploaded when the bucket is back, also by the next process."""
    image = hub.add_image(APP, "2", [hub.add_synthetic_blob(APP, 2 * MIB, 5)])
    await proxy.close()
    async with opened("second") as mirror:
        await pull(mirror, image, "2")
    await proxy.open()
    async with opened("second") as mirror:
        await uploaded(bucket, image)
        assert await mirror.metric("objects_up") == 1


@pytest.mark.parametrize(("fault", "after"), [("cut_after", MIB), ("stall_after", 2 * MIB)])
async def test_object_that_breaks_off(fault, after, hub, kept, proxy, opened, monkeypatch):
    """Upstream sends the rest, from the byte at which the bucket has ended or hung."""
    async with opened("second") as mirror:
        await mirror.get(f"/v2/{APP}/manifests/1")
        bucket = mirror.services.objects.reader.bucket
        address = type(bucket._address)
        assert bucket._address.answer_s == LIMIT
        monkeypatch.setattr(bucket, "_address", address(**{**vars(bucket._address), "stall_s": 3.0}))
        setattr(proxy, fault, after)
        layer = kept.layers[0]
        answer = await mirror.get(f"/v2/{APP}/blobs/{layer.digest}")
        assert (answer.status, answer.sha256) == (200, layer.digest)
        assert 0 < hub.bytes_sent(layer.digest) <= layer.size - MIB // 2


async def test_slow_bucket(kept, proxy, opened):
    """Its bytes go on as they come, not when a large block is full."""
    async with opened("second") as mirror:
        await mirror.get(f"/v2/{APP}/manifests/1")
        proxy.stall_after = 100 << 10
        async with mirror.session.get(mirror.url(f"/v2/{APP}/blobs/{kept.layers[0].digest}")) as response:
            first = await response.content.readexactly(32 << 10)
        assert len(first) == 32 << 10


async def test_many_readers_at_once(hub, kept, proxy, opened, monkeypatch):
    """Upstream is asked for what the bucket has no stream left for; one that has ended is free again."""
    layer, config = kept.layers[0], kept.config
    monkeypatch.setattr("mirror.objects.reader._MAX_STREAMS", 1)
    monkeypatch.setattr("mirror.objects.reader._TURN_S", 0.1)
    async with opened("second") as mirror:
        await mirror.get(f"/v2/{APP}/manifests/1")
        proxy.stall_after = 100 << 10
        async with mirror.session.get(mirror.url(f"/v2/{APP}/blobs/{layer.digest}")) as response:
            await response.content.readexactly(32 << 10)
            assert (await mirror.get(f"/v2/{APP}/blobs/{config.digest}")).sha256 == config.digest
            assert hub.bytes_sent(config.digest) == config.size
            proxy.stall_after = None


async def test_bucket_that_is_only_read(hub, bucket, kept, opened):
    image = hub.add_image(APP, "2", [hub.add_synthetic_blob(APP, 2 * MIB, 5)])
    before = bucket.objects()
    async with opened("second", objects={"write": "off"}) as mirror:
        await pull(mirror, kept)
        await pull(mirror, image, "2")
        assert sent(hub, kept)[0] == 0
        assert not (mirror.store_path / "index" / "objects").exists()
    assert bucket.objects() == before


async def test_small_blobs_stay_here(hub, bucket, opened):
    """`min_size` is about blobs; manifests are always written."""
    image = hub.add_image(APP, "1", [hub.add_synthetic_blob(APP, 2 * MIB, 5)])
    async with opened("first", objects={"min_size": "1MiB"}) as mirror:
        await pull(mirror, image)
        await eventually(
            bucket.objects,
            holds=lambda keys: {key("manifests", image.digest), key("blobs", image.layers[0].digest)} <= keys.keys(),
        )
        await nothing_owed(mirror)
    assert key("blobs", image.config.digest) not in bucket.objects()


async def test_ready_says_how_the_bucket_is(opened, proxy):
    async with opened("first") as mirror, mirror.session.get(f"http://127.0.0.1:{mirror.admin_port}/readyz") as response:
        assert response.status == 200
        assert (await response.json())["cluster"] == {"objects": "up", "owed": 0}
