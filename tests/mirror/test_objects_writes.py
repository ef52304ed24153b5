"""A bucket that does not take what it is to keep."""

import asyncio
import functools

import pytest
from prometheus_client import CollectorRegistry, Counter

from mirror.core.digest import Digest
from mirror.objects.address import BucketAddress
from mirror.objects.bucket import Bucket
from tests.mirror.buckets import key, keys, nothing_owed, pull, sent, uploaded
from tests.support.names import APP
from tests.support.waiting import LIMIT, eventually

MIB = 1 << 20


async def purge(mirror, image):
    """Purge an image by its name; the number of its tags in the store."""
    url = f"http://127.0.0.1:{mirror.admin_port}/api/v1/purge"
    async with mirror.session.post(url, json={"match": image}) as response:
        return (await response.json())["tags"]


async def test_bucket_that_is_only_readable(hub, bucket, kept, proxy, opened):
    """A full bucket, or a key that may not write: what is there is read as before, and the uploads are made once they can be."""
    image = hub.add_image(APP, "2", [hub.add_synthetic_blob(APP, 2 * MIB, 5)])
    proxy.refused = "PUT "
    async with opened("second") as mirror:
        await pull(mirror, image, "2")
        failed = functools.partial(mirror.metric, "objects_requests_total", op="put", status="denied")
        await eventually(failed, holds=lambda count: count >= 4)
        hub.reset_counters()
        await pull(mirror, kept)
        assert sent(hub, kept)[0] == 0
        assert await mirror.metric("objects_up") == 1
        proxy.refused = None
        await uploaded(bucket, image)


async def test_record_of_a_tag_does_not_wait_for_blobs(hub, bucket, kept, proxy, opened):
    """However long their uploads take: an outage of upstream must not bring a purged tag back."""
    assert any("/tags/" in name for name in bucket.objects())
    image = hub.add_image(APP, "2", [hub.add_synthetic_blob(APP, 2 * MIB, 5)])
    async with opened("second") as mirror:
        proxy.held = f"PUT /{bucket.name}/pre/fix/1/blobs/"
        await pull(mirror, image, "2")
        await eventually(lambda: any(line.startswith("PUT") and "/blobs/" in line for line in proxy.seen), "one hangs")
        assert await purge(mirror, f"docker.io/{APP}:1") == 0
        await eventually(lambda: not any(name.endswith("/1.json") for name in bucket.objects()), "the record is gone")
        assert key("blobs", image.layers[0].digest) not in bucket.objects()


async def test_upload_of_another_mirror_that_fails(hub, bucket, proxy, opened):
    """S3 answers 409 while another upload of an object is under way, as if it were there."""
    image = hub.add_image(APP, "1", [hub.add_synthetic_blob(APP, 2 * MIB, 5)])
    proxy.refused, proxy.refusal = "PUT ", 409
    async with opened("first") as mirror:
        await pull(mirror, image)
        await eventually(functools.partial(mirror.metric, "objects_requests_total", op="put", status="exists"))
        await eventually(lambda: sum("/blobs/" in line for line in proxy.seen if line.startswith("PUT")) >= 2, "tried")
        proxy.refused = None
        await uploaded(bucket, image)


async def test_object_that_was_cut_off(hub, bucket, opened):
    """The whole one replaces it."""
    image = hub.add_image(APP, "1", [hub.add_synthetic_blob(APP, 2 * MIB, 5)])
    async with opened("first") as mirror:
        await mirror.get(f"/v2/{APP}/manifests/1")
        await nothing_owed(mirror)
        bucket.put(key("blobs", image.layers[0].digest), b"cut")
        await mirror.get(f"/v2/{APP}/blobs/{image.layers[0].digest}")
        await mirror.idle()
        await nothing_owed(mirror)
        assert bucket.objects()[key("blobs", image.layers[0].digest)] == 2 * MIB


async def test_size_that_a_manifest_names_wrongly(hub, bucket, kept, proxy, opened):
    """Whoever can push a manifest upstream cannot have an object deleted that others need."""
    layer, other = kept.layers[0], "library/other"
    hub.add_synthetic_blob(other, layer.size, 1)
    wrong = kept.raw.replace(f'"size": {layer.size}'.encode(), b'"size": 77')
    assert wrong != kept.raw
    hub.add_manifest(other, wrong, kept.media_type, "1")
    async with opened("second") as mirror:
        assert (await mirror.get(f"/v2/{other}/manifests/1")).status == 200
        await mirror.get(f"/v2/{other}/blobs/{layer.digest}")
        await mirror.idle()
        assert any(line.startswith("GET") and layer.digest[7:] in line for line in proxy.seen)
        await nothing_owed(mirror)
        await pull(mirror, kept)
    assert not any(line.startswith("DELETE") for line in proxy.seen)
    assert keys(kept) <= bucket.objects().keys()


async def test_large_upload_leaves_the_processor_to_clients(hub, bucket, proxy, opened, monkeypatch):
    """It pauses between parts while any are connected, and goes on once they are not."""
    monkeypatch.setattr("mirror.objects.uploader._PAUSE_S", 3600.0)
    blob = hub.add_synthetic_blob(APP, 20 * MIB, 5)
    image = hub.add_image(APP, "1", [blob])

    def parts():
        return sum("partNumber=" in line for line in proxy.seen)

    async with opened("first") as mirror:
        # Its connection stays open.
        await pull(mirror, image)
        await eventually(parts, "begun", holds=lambda count: count == 1)
        for _ in range(5):
            await pull(mirror, image)
        assert parts() == 1
        await mirror.session.close()
        await uploaded(bucket, image)
        assert parts() == 3
        assert Digest.of(bucket.get(key("blobs", blob.digest))) == Digest.parse(blob.digest)


async def test_upload_does_not_fall_behind(hub, bucket, opened, monkeypatch):
    """Once many uploads are owed it does not pause."""
    monkeypatch.setattr("mirror.objects.uploader._PAUSE_S", 3600.0)
    monkeypatch.setattr("mirror.objects.uploader._MAX_PACED", -1)
    image = hub.add_image(APP, "1", [hub.add_synthetic_blob(APP, 9 * MIB, 5)])
    async with opened("first") as mirror:
        await pull(mirror, image)
        await uploaded(bucket, image)


def unfinished(bucket):
    """How many uploads in parts have begun and not ended (S3, ListMultipartUploads)."""
    with bucket.request("GET", "?uploads") as response:
        return response.read().count(b"<UploadId>")


async def test_stop_in_the_middle_of_an_upload(hub, bucket, proxy, opened):
    """No part of it is left in the bucket, where it would be paid for unseen."""
    layer = hub.add_synthetic_blob(APP, 100 * MIB, 6)
    async with opened("second", objects={"max_rate": 24 * MIB}) as mirror:
        await mirror.get(f"/v2/{APP}/blobs/{layer.digest}")
        await eventually(lambda: [line for line in proxy.seen if "partNumber=1&" in line], "the first part")
        assert unfinished(bucket) == 1
    assert unfinished(bucket) == 0
    assert not any(layer.digest[7:] in name for name in bucket.objects())
    # It was ended: all of it had not been sent.
    assert not [line for line in proxy.seen if "partNumber=12&" in line]


async def test_what_the_client_of_the_bucket_does_with_parts(bucket, proxy, tmp_path):
    """It deletes the parts of an upload whose content fails, and leaves those of one that is cancelled: so none may be."""
    file = tmp_path / "key"
    file.write_text("id\nsecret\n")
    address = BucketAddress(bucket.name, "", proxy.url, access_key_file=file)
    client = Bucket(address, Counter("requests", "", ["op", "status"], registry=CollectorRegistry()))
    stands = asyncio.Event()

    async def pieces(end):
        yield bytes(8 * MIB)
        stands.set()
        await end()

    async def fail():
        raise ValueError("the mirror stops")

    with pytest.raises(ValueError, match="the mirror stops"):
        await client.put_parts("failed", pieces(fail), 16 * MIB, {})
    assert unfinished(bucket) == 0
    stands.clear()
    put = asyncio.create_task(client.put_parts("cancelled", pieces(asyncio.Event().wait), 16 * MIB, {}))
    await asyncio.wait_for(stands.wait(), LIMIT)
    await eventually(lambda: unfinished(bucket), "the upload", holds=lambda count: count == 1)
    put.cancel()
    await asyncio.gather(put, return_exceptions=True)
    assert unfinished(bucket) == 1
