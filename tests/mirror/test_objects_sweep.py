"""The bucket stays below its limit, by use; and what was purged leaves it."""

import time

import pytest

from mirror.objects.sweeper import SweepLimits
from tests.mirror.buckets import key, keys, nothing_owed, pull, uploaded
from tests.support.names import APP
from tests.support.waiting import eventually

MIB = 1 << 20


@pytest.fixture
def at_once(monkeypatch):
    """The sweeper looks all the time."""
    for name in ("_TICK_S", "_LOOK_INTERVAL_S", "_FULL_INTERVAL_S"):
        monkeypatch.setattr(f"mirror.objects.sweeper.{name}", 0.05)


def limit(mirror, size, grace=0.0):
    """Set the limits of a mirror's bucket."""
    mirror.services.objects.writer.sweeper._limits = SweepLimits(size, grace, grace)


def images(hub, count):
    """So many images of one layer of a MiB each, by their tags."""
    return {str(n): hub.add_image(APP, str(n), [hub.add_synthetic_blob(APP, MIB, n)]) for n in range(count)}


async def pulled(mirror, bucket, made):
    """Have a mirror pull images, and upload them."""
    for tag, image in made.items():
        await pull(mirror, image, tag)
    for image in made.values():
        await uploaded(bucket, image)


def used(mirror, image, when):
    """Have an image be used last at a time, in the store and in the bucket."""
    facts = mirror.services.objects.uses.facts
    for digest in [image.digest, image.config.digest, *(layer.digest for layer in image.layers)]:
        facts._table.set(f"used|{digest}", when)


def content_bytes(bucket):
    """The bytes of the blobs and manifests in the bucket."""
    return sum(size for name, size in bucket.objects().items() if "/tags/" not in name and "LAYOUT" not in name)


async def test_least_recently_used_goes_first(hub, bucket, opened, at_once, monkeypatch):
    """Down to 90 % of the limit; and the metric says what is there."""
    # Moto says that all has been written now.
    monkeypatch.setattr("mirror.objects.bucket._seconds", lambda _: 0.0)
    made = images(hub, 5)
    async with opened("first") as mirror:
        await pulled(mirror, bucket, made)
        now = time.time()
        for age, tag in enumerate(("3", "0", "4", "1", "2")):
            used(mirror, made[tag], now - 90_000 - 7200 * age)
            for digest in (made[tag].digest, made[tag].config.digest, made[tag].layers[0].digest):
                mirror.blob_path(digest).unlink()
        limit(mirror, int(3.5 * MIB))
        await eventually(lambda: key("blobs", made["1"].layers[0].digest) not in bucket.objects(), "gone")
        await eventually(lambda: key("blobs", made["2"].layers[0].digest) not in bucket.objects(), "gone")
        found = bucket.objects()
        assert keys(made["3"]) | keys(made["0"]) | keys(made["4"]) <= found.keys()
        await eventually(lambda: mirror.metric("objects_bytes"), holds=lambda bytes_: bytes_ == content_bytes(bucket))
        assert await mirror.metric("objects_deleted_total") >= 2
        assert await mirror.metric("objects_deleted_bytes_total") >= 2 * MIB


async def test_foreign_objects_do_not_count(hub, bucket, opened, at_once):
    """They stay, and nothing goes in their place."""
    made = images(hub, 2)
    foreign = "pre/fix/1/blobs/backup.tar"
    async with opened("first") as mirror:
        await pulled(mirror, bucket, made)
        bucket.put(foreign, bytes(4 * MIB))
        size = content_bytes(bucket) - 4 * MIB
        limit(mirror, 4 * MIB)
        await eventually(lambda: mirror.services.objects.size, "counted", holds=lambda counted: counted == size)
        assert bucket.objects().keys() >= {foreign, *keys(made["0"]), *keys(made["1"])}


async def test_what_no_tag_needs_goes_first(hub, bucket, opened, at_once, monkeypatch):
    """Also if it was used later than what a tag needs."""
    monkeypatch.setattr("mirror.objects.bucket._seconds", lambda _: 0.0)
    made = images(hub, 3)
    async with opened("first", tags={"ttl": "0s"}) as mirror:
        await pulled(mirror, bucket, made)
        moved = hub.add_image(APP, "0", [hub.add_synthetic_blob(APP, MIB, 77)])
        await pull(mirror, moved, "0")
        await uploaded(bucket, moved)
        await nothing_owed(mirror)
        now = time.time()
        for age, image in enumerate((made["0"], made["1"], made["2"], moved)):
            used(mirror, image, now - 90_000 - 7200 * age)
            for digest in (image.digest, image.config.digest, image.layers[0].digest):
                mirror.blob_path(digest).unlink()
        limit(mirror, int(3.9 * MIB))
        await eventually(lambda: key("blobs", made["0"].layers[0].digest) not in bucket.objects(), "gone")
        assert keys(made["1"]) | keys(made["2"]) | keys(moved) <= bucket.objects().keys()


async def test_what_is_used_between_the_two_steps_stays(hub, bucket, opened, at_once):
    """Nothing goes before the grace is over, and then not what a client has used since."""
    made = images(hub, 2)
    async with opened("first") as mirror:
        await pulled(mirror, bucket, made)
        sweeper = mirror.services.objects.writer.sweeper
        limit(mirror, MIB, grace=3600.0)
        await eventually(lambda: sweeper._withdrawn, "withdrawn")
        assert all(keys(image) <= bucket.objects().keys() for image in made.values())
        layers = {image.layers[0].digest for image in made.values()}
        saved = next(digest for digest in sweeper._withdrawn if str(digest) in layers)
        await mirror.services.objects.uses.facts.note_uses({saved: time.time() + 1})
        limit(mirror, MIB, grace=0.0)
        await eventually(lambda: not sweeper._withdrawn or saved not in sweeper._withdrawn)
        assert key("blobs", str(saved)) in bucket.objects()


async def test_bucket_that_fails_between_the_two_steps(hub, bucket, opened, proxy, at_once, monkeypatch):
    """Nothing is deleted blindly; the sweep goes on when the bucket is back, and pulls never wait for it."""
    monkeypatch.setattr("mirror.objects.bucket._seconds", lambda _: 0.0)
    made = images(hub, 3)
    async with opened("first") as mirror:
        await pulled(mirror, bucket, made)
        for tag, image in made.items():
            used(mirror, image, time.time() - 100_000 - 7200 * int(tag))
            for digest in (image.digest, image.config.digest, image.layers[0].digest):
                mirror.blob_path(digest).unlink()
        sweeper = mirror.services.objects.writer.sweeper
        limit(mirror, int(1.5 * MIB), grace=3600.0)
        await eventually(lambda: sweeper._withdrawn, "withdrawn")
        proxy.status = 503
        await eventually(lambda: not mirror.services.objects.reader.is_up, "down", holds=bool)
        limit(mirror, int(1.5 * MIB), grace=0.0)
        other = hub.add_image(APP, "9", [hub.add_synthetic_blob(APP, MIB, 9)])
        await pull(mirror, other, "9")
        assert all(keys(image) <= bucket.objects().keys() for image in made.values())
        proxy.status = 0
        await eventually(lambda: key("blobs", made["2"].layers[0].digest) not in bucket.objects(), "gone")


async def test_purged_image_leaves_the_bucket(hub, bucket, opened, at_once):
    """With its tag's record at once, and with what no other image needs after the grace."""
    shared = hub.add_synthetic_blob(APP, MIB, 1)
    bad = hub.add_image(APP, "bad", [shared, hub.add_synthetic_blob(APP, MIB, 2)])
    good = hub.add_image(APP, "good", [shared])
    async with opened("first") as mirror:
        limit(mirror, 0, grace=3600.0)
        for tag, image in (("bad", bad), ("good", good)):
            await pull(mirror, image, tag)
            await uploaded(bucket, image)
        await nothing_owed(mirror)
        url = f"http://127.0.0.1:{mirror.admin_port}/api/v1/purge"
        async with mirror.session.post(url, json={"match": f"docker.io/{APP}:bad"}) as response:
            assert (await response.json())["tags"] == 1
        await eventually(lambda: not any(name.endswith("/bad.json") for name in bucket.objects()), "the record is gone")
        assert keys(bad) <= bucket.objects().keys()
        limit(mirror, 0, grace=0.0)
        await eventually(lambda: key("manifests", bad.digest) not in bucket.objects(), "gone")
        await eventually(lambda: key("blobs", bad.layers[1].digest) not in bucket.objects(), "gone")
        assert keys(good) <= bucket.objects().keys()


async def test_purge_of_a_tag_that_the_store_does_not_know(hub, bucket, kept, opened):
    """Its record leaves the bucket, too, so that no outage brings it back."""
    assert any(name.endswith("/1.json") for name in bucket.objects())
    async with opened("second") as mirror:
        url = f"http://127.0.0.1:{mirror.admin_port}/api/v1/purge"
        async with mirror.session.post(url, json={"match": f"docker.io/{APP}:1"}) as response:
            assert (await response.json())["tags"] == 0
        await eventually(lambda: not any("/tags/" in name for name in bucket.objects()), "the record is gone")


async def test_purged_image_that_is_pulled_again_stays(hub, bucket, opened, at_once):
    """It is needed again."""
    image = hub.add_image(APP, "1", [hub.add_synthetic_blob(APP, MIB, 2)])
    async with opened("first") as mirror:
        limit(mirror, 0, grace=3600.0)
        await pull(mirror, image)
        await uploaded(bucket, image)
        url = f"http://127.0.0.1:{mirror.admin_port}/api/v1/purge"
        async with mirror.session.post(url, json={"match": f"docker.io/{APP}:1"}) as response:
            assert (await response.json())["tags"] == 1
        await pull(mirror, image)
        await nothing_owed(mirror)
        owed = mirror.services.objects.writer.owed
        assert owed.purged(time.time(), 10)
        limit(mirror, 0, grace=0.0)
        await eventually(lambda: owed.purged(time.time() + 1, 10), "looked at", holds=lambda rows: not rows)
        assert keys(image) <= bucket.objects().keys()


async def test_key_that_may_not_list(hub, bucket, kept, proxy, opened, at_once):
    """The bucket is used as before; only its size is not known."""
    proxy.refused = "list-type"
    async with opened("second") as mirror:
        await pull(mirror, kept)
        await eventually(lambda: mirror.metric("objects_requests_total", op="list", status="denied"))
        assert await mirror.metric("objects_up") == 1
        assert await mirror.metric("source_bytes_total", source="objects") > 3 * MIB


async def test_one_look_at_the_tags_for_a_large_purge(hub, bucket, opened, proxy, at_once, monkeypatch):
    """However many steps it takes: each look reads the records of all tags."""
    monkeypatch.setattr("mirror.objects.sweeper._MAX_PURGED", 1)
    image, stays = (hub.add_image(APP, tag, [hub.add_synthetic_blob(APP, MIB, n)]) for n, tag in enumerate(("bad", "good")))
    async with opened("first") as mirror:
        limit(mirror, 0, grace=3600.0)
        await pulled(mirror, bucket, {"bad": image, "good": stays})
        await nothing_owed(mirror)
        url = f"http://127.0.0.1:{mirror.admin_port}/api/v1/purge"
        async with mirror.session.post(url, json={"match": f"docker.io/{APP}:bad"}) as response:
            assert (await response.json())["tags"] == 1
        await nothing_owed(mirror)
        proxy.seen.clear()
        limit(mirror, 0, grace=0.0)
        await eventually(lambda: not keys(image) & bucket.objects().keys(), "gone")
        assert sum("list-type=2" in line and "tags" in line for line in proxy.seen) == 1
        assert keys(stays) <= bucket.objects().keys()
