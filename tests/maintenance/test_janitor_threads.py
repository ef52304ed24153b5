"""The janitor's long walks are in nobody's way: not of a request that needs room, and not of the end of the process."""

import asyncio
import errno
import fcntl
import os
import threading
from pathlib import Path

import pytest

from mirror.cache.tag_policy import TagPolicies, TagPolicy
from mirror.cache.usage import Usage
from mirror.config.sections import Storage
from mirror.core.digest import Digest
from mirror.errors import StorageError
from mirror.maintenance import store_scan
from mirror.maintenance.janitor import Janitor
from mirror.maintenance.scrub import Scrub
from mirror.metrics import Metrics
from mirror.storage.layout import Layout
from mirror.storage.space_quota import Fit
from mirror.storage.staging import Staging
from mirror.storage.store import Store
from tests.support.names import KIB, MIB
from tests.support.waiting import LIMIT, SOON


@pytest.fixture
def store(tmp_path):
    store = Store(Storage(path=tmp_path / "store", max_size=0, min_free=0))
    yield store
    store.close()


@pytest.fixture
def files(store):
    files = store.files
    for number in range(4):
        files.put(Digest.of(content(number)), content(number))
        files.touch(Digest.of(content(number)), 1000.0 + number)
    return files


def content(number):
    """More than the index may come to take, which counts, too."""
    return bytes([number]) * MIB


@pytest.fixture
def usage():
    return Usage()


@pytest.fixture
def janitor(store, files, usage):
    files.quota.max_size, _ = files.quota.figures()
    policies = TagPolicies(TagPolicy(60.0, 60.0, 60.0), {})
    scrub = Scrub(store.layout, files, store.generation, 0, lambda result: None)
    return Janitor(store, scrub, usage, Metrics(), policies)


@pytest.fixture
def long_count(monkeypatch):
    """The first survey, which is the count's, takes until it is told to stop; tells when it has begun."""
    take, begun = store_scan.take, threading.Event()

    def long(layout, over, most=0, *args, **kwargs):
        if most:
            return take(layout, over, most, *args, **kwargs)
        begun.set()
        ends = threading.Event()
        while not over():
            ends.wait(0.01)
        return None

    monkeypatch.setattr(store_scan, "take", long)
    return begun


async def stop(running):
    running.cancel()
    await asyncio.wait([running], timeout=LIMIT)
    assert running.cancelled()


async def test_who_waits_in_line_for_room_waits_no_longer(janitor, tmp_path, monkeypatch):
    """While another process evicts, and nothing comes of it, many who want room have their answer as soon as one of them."""
    monkeypatch.setattr("mirror.maintenance.janitor._ROOM_TIMEOUT_S", 0.5)
    descriptor = os.open(Layout(str(tmp_path / "store")).eviction_lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        async with asyncio.timeout(SOON):
            await asyncio.gather(*(janitor.make_room(1) for _ in range(100)))
    finally:
        os.close(descriptor)


async def test_lock_that_cannot_be_opened(janitor, files, tmp_path):
    """Without the lock of evictions nothing is evicted, and whoever needs room goes on without it."""
    Path(Layout(str(tmp_path / "store")).eviction_lock).mkdir()
    await janitor.make_room(1)
    assert files.quota.fits(1) is Fit.NO_SPACE


async def test_disk_that_cannot_be_measured(janitor, monkeypatch):
    """A failure of the file system while room is made is one of the store, which sends the blob past it."""

    def broken(path):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, "statvfs", broken)
        with pytest.raises(StorageError, match="Input/output error"):
            await janitor.make_room(1)


async def test_room_is_made_during_a_count(janitor, files, long_count):
    """A request that needs room gets it while the store is being counted."""
    running = asyncio.create_task(janitor.run())
    await asyncio.to_thread(long_count.wait, LIMIT)
    assert files.quota.fits(1) is Fit.NO_SPACE
    await asyncio.wait_for(janitor.make_room(1), LIMIT)
    assert files.quota.fits(1) is Fit.RESERVED
    assert files.size(Digest.of(content(0))) is None
    await stop(running)


async def test_the_end_waits_for_no_count_and_loses_no_usage(janitor, files, usage, long_count):
    """Cancelled in the middle of a count, the janitor ends soon, and what has been used last is written down."""
    running = asyncio.create_task(janitor.run())
    await asyncio.to_thread(long_count.wait, LIMIT)
    usage.note_blob(Digest.of(content(0)), 5000.0)
    await stop(running)
    assert files.used(Digest.of(content(0))) == 5000.0


def test_an_import_during_a_count(janitor, store, files, monkeypatch):
    """What becomes cached after its shard was scanned is not lost, and the next count is certain again."""
    size, quota = 64 * KIB, store.quota
    quota.max_size = 0
    before, data, take = quota.mark(), bytes(size), store_scan.take
    staging = Staging(store.layout, quota)
    staged = staging.create(size, "a layer")
    staged.write(data)

    def scan(*args, **kwargs):
        found = take(*args, **kwargs)
        quota.assign(staged.path, size, 0, "docker.io")
        with open(staged.path, "rb") as file:
            files.commit(staged.path, file.fileno(), Digest.of(data))
        return found

    with monkeypatch.context() as patched:
        patched.setattr(store_scan, "take", scan)
        is_certain = janitor.count()
    staged.close()
    staging.close()
    account = quota.mark()
    assert (account.used, account.blobs, is_certain) == (before.used + size, before.blobs + 1, False)
    assert (account.of("docker.io").used, account.of("docker.io").blobs) == (size, 1)
    assert janitor.count() is True
    assert quota.mark() == account
