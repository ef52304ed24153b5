"""A disk that takes long to flush, and names that do not resolve: neither keeps anybody waiting for something else."""

import asyncio
import os
import threading

import pytest

from tests.support.names import APP, TAG, blob_path, content, manifest_path
from tests.support.waiting import LIMIT, SOON, eventually


class Disk:
    """Takes as long to flush as a test wants."""

    def __init__(self):
        self.flushing = 0
        self._go = threading.Event()

    def fsync(self, descriptor):
        self.flushing += 1
        assert self._go.wait(2 * LIMIT)

    def release(self):
        self._go.set()


@pytest.fixture
def disk(monkeypatch):
    """Flushes nothing until it is let go."""
    monkeypatch.setattr("mirror.storage.write_behind._TIMEOUT_S", 0.25)
    disk = Disk()
    yield disk
    disk.release()


async def flushing(hub, mirror, disk, monkeypatch, count=8):
    """Have so many blobs pulled that are on their way to the disk, and stay there."""
    monkeypatch.setattr(os, "fsync", disk.fsync)
    for number in range(count):
        data = content(200_000, number)
        assert (await mirror.get(blob_path(hub.add_blob(APP, data)))).body == data
    await eventually(lambda: disk.flushing)


async def test_flushes_keep_nobody_waiting(hub, mirror, disk, monkeypatch):
    """With eight flushes under way a held tag, a tag that is due, a new manifest and a small blob come at once."""
    image = hub.add_image(APP, "1", layers=[b"layer"])
    await mirror.get(TAG)
    await flushing(hub, mirror, disk, monkeypatch)
    other, small = hub.add_image(APP, "2", layers=[b"other"]), hub.add_blob(APP, b"small" * 60)
    async with asyncio.timeout(SOON):
        assert (await mirror.get(TAG)).body == image.raw
        assert (await mirror.get(manifest_path("2"))).body == other.raw
        # By its digest, too, without another pull, though it is not on the disk yet.
        assert (await mirror.get(manifest_path(other.digest))).body == other.raw
        assert (await mirror.get(blob_path(small))).body == b"small" * 60
        assert (await mirror.get(blob_path(image.config))).status == 200
    assert hub.count("GET", "manifest", reference=other.digest) <= 1
    disk.release()
    await mirror.idle()
    assert mirror.holds(small)
    await eventually(lambda: mirror.holds(other.digest))


async def test_notes_keep_nobody_waiting(hub, mirror, monkeypatch):
    """An index that takes long to write delays no answer."""
    monkeypatch.setattr("mirror.cache.context._NOTE_TIMEOUT_S", 0.05)
    go, real = threading.Event(), type(mirror.store.index.grants).put

    def slow(*args):
        assert go.wait(LIMIT)
        real(*args)

    monkeypatch.setattr(type(mirror.store.index.grants), "put", slow)
    try:
        image = hub.add_image(APP, "1", layers=[b"layer"])
        async with asyncio.timeout(SOON):
            assert (await mirror.get(TAG)).body == image.raw
            assert (await mirror.get(blob_path(image.layers[0]))).body == b"layer"
    finally:
        go.set()


async def test_stop_does_not_wait_for_a_client_of_a_slow_disk(hub, mirror, disk, monkeypatch):
    """A client that leaves while its blob is being flushed is gone at once."""
    await flushing(hub, mirror, disk, monkeypatch, 1)
    async with asyncio.timeout(SOON):
        await mirror.services.downloads.close()
