"""Workers with a bucket behind their store, killed and stopped; and a bucket that hangs."""

import itertools
import os
import signal
from pathlib import Path

import pytest

from tests.support.buckets import BucketServer
from tests.support.names import APP, sha256
from tests.support.waiting import eventually
from tests.workers.cluster import Cluster

MIB = 1 << 20
_NAMES = itertools.count()


class Hurried(Cluster):
    """A mirror with two workers and the short time limits of production."""

    unhurried = False


@pytest.fixture(scope="module")
def server():
    running = BucketServer()
    yield running
    running.close()


@pytest.fixture
def mirror(hub, server, tmp_path):
    """A mirror with two workers and a bucket; entered and left as often as a test likes."""
    hub.redirect_blobs = False
    file = tmp_path / "key"
    file.write_text("id\nsecret\n")
    bucket = server.bucket(f"workers-{next(_NAMES)}")
    objects = {"url": f"s3://{bucket.name}", "endpoint": f"http://127.0.0.1:{server.port}", "access_key_file": str(file)}
    made = Hurried(hub, tmp_path, objects=objects)
    made.bucket = bucket
    return made


def keys(image):
    """The names of an image's objects."""
    named = [("manifests", image.digest), *(("blobs", blob.digest) for blob in (*image.layers, image.config))]
    return {f"1/{kind}/sha256/{digest[7:9]}/{digest[7:]}" for kind, digest in named}


async def pull(mirror, image):
    _, _, body = await mirror.get(f"/v2/{APP}/manifests/1")
    assert sha256(body) == image.digest
    for blob in (*image.layers, image.config):
        _, _, body = await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")
        assert sha256(body) == blob.digest


async def held(mirror, count):
    await eventually(lambda: len(mirror.files("blobs")), "held", holds=lambda found: found == count)


async def test_killed_while_uploads_are_owed(hub, server, mirror):
    """They are made after the next start, by one of its workers."""
    image = hub.add_image(APP, "1", [hub.add_synthetic_blob(APP, 12 * MIB, 1)])
    server.signal(signal.SIGSTOP)
    try:
        async with mirror:
            await pull(mirror, image)
            # Leaving it kills all of its processes.
            await held(mirror, 3)
    finally:
        server.signal(signal.SIGCONT)
    assert not keys(image) & mirror.bucket.objects().keys()
    async with mirror:
        await eventually(mirror.bucket.objects, "uploaded", holds=lambda found: keys(image) <= found.keys())
        mirror.process.send_signal(signal.SIGTERM)
        # The client of the bucket has threads of its own, which must not end in an abort.
        assert await mirror.ended() == 0
    assert "panicked" not in mirror.log


async def test_bucket_hangs_in_the_middle_of_a_blob(hub, server, mirror, tmp_path):
    """The pull goes on from upstream, and nobody waits for the bucket after that."""
    layers = [hub.add_synthetic_blob(APP, size * MIB, size) for size in (24, 1)]
    image = hub.add_image(APP, "1", layers)
    async with mirror:
        await pull(mirror, image)
        await eventually(mirror.bucket.objects, "uploaded", holds=lambda found: keys(image) <= found.keys())
    hub.reset_counters()
    (tmp_path / "second").mkdir()
    async with Hurried(hub, tmp_path / "second", objects=mirror.settings["objects"]) as second:
        await second.get(f"/v2/{APP}/manifests/1")
        reading = await (await second.pull(f"/v2/{APP}/blobs/{layers[0].digest}")).head()
        await reading.read(MIB)
        server.signal(signal.SIGSTOP)
        try:
            assert sha256(await reading.rest()) == layers[0].digest
            for blob in (layers[1], image.config):
                _, _, body = await second.get(f"/v2/{APP}/blobs/{blob.digest}")
                assert sha256(body) == blob.digest
            await eventually(second.metrics, holds=lambda seen: not seen["registry_mirror_objects_up"])
        finally:
            server.signal(signal.SIGCONT)
        assert hub.bytes_sent(layers[0].digest) <= layers[0].size - MIB // 2
        await eventually(second.metrics, holds=lambda seen: seen["registry_mirror_objects_up"])


async def test_client_is_started_after_the_fork(hub, mirror):
    """Its threads do not survive a fork, so a call in the child would hang. The parent of the workers has not even loaded it."""
    image = hub.add_image(APP, "1", [b"layer"])

    def loaded(pid):
        return "obstore" in Path(f"/proc/{pid}/maps").read_text()

    async with mirror:
        await pull(mirror, image)
        await eventually(mirror.bucket.objects, "uploaded", holds=lambda found: keys(image) <= found.keys())
        assert any(loaded(pid) for pid in mirror.workers())
        assert not loaded(mirror.process.pid)
        # So one that takes the place of another may use it as well.
        for pid in mirror.workers():
            os.kill(pid, signal.SIGKILL)
        await mirror.logged('"serving"', 4)
        second = hub.add_image(APP, "1", [b"another layer"])
        await pull(mirror, second)
        await eventually(mirror.bucket.objects, "uploaded", holds=lambda found: keys(second) <= found.keys())
