"""A whole mirror over a store that cannot be written, or of which somebody holds on to what all share."""

import asyncio
import fcntl
import os

import pytest

from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, TAG, blob_path
from tests.support.waiting import LIMIT, SOON


@pytest.fixture
def held_account(mirror):
    """Another process holds the lock of the account, and hangs."""
    mirror.store.quota.used()
    descriptor = os.open(mirror.store.layout.account, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


async def test_pulls_go_on_while_the_account_is_held(hub, mirror, held_account, monkeypatch):
    """Who hangs with the account in hand costs others a moment: what is new goes past the store, and the metrics are there."""
    image = hub.add_image(APP, "1", layers=[os.urandom(200_000)])
    async with asyncio.timeout(LIMIT):
        assert (await mirror.get(TAG)).body == image.raw
        answer = await mirror.get(blob_path(image.layers[0]))
        assert (answer.status, answer.sha256) == (200, image.layers[0].digest)
    monkeypatch.setattr("mirror.storage.account._LOCK_TIMEOUT_S", LIMIT)
    async with asyncio.timeout(SOON):
        assert await mirror.metric("storage_limit_bytes") > 0


async def test_deleted_tag_on_a_read_only_store(hub, tmp_path):
    """Where nothing can be written any more a tag that upstream has deleted is 404, as it is anywhere, and not out of memory."""
    image = hub.add_image(APP, "1")
    async with MirrorUnderTest(hub, tmp_path / "store", tags={"ttl": "0s", "not_found_ttl": "0s"}) as mirror:
        assert (await mirror.get(TAG)).body == image.raw
        # A file system cannot be made read-only while a file on it is open for writing; a descriptor can.
        descriptor = os.open(mirror.store.layout.generation, os.O_RDONLY)
        os.dup2(descriptor, mirror.store.generation.descriptor)
        os.close(descriptor)
        before = mirror.store.generation.current()
        hub.delete_tag(APP, "1")
        assert (await mirror.get(TAG)).status == 404
        assert mirror.store.generation.current() != before
        assert (await mirror.get(TAG)).status == 404


async def test_private_files(hub, tmp_path):
    """No file of the store can be read by others, whatever the umask is."""
    old = os.umask(0)
    try:
        image = hub.add_image(APP, "1", layers=[os.urandom(200_000)])
        async with MirrorUnderTest(hub, tmp_path / "store", storage={"scrub_interval": "1s"}) as mirror:
            await mirror.get(TAG)
            await mirror.get(blob_path(image.layers[0]))
            await mirror.idle()
            modes = {str(path): path.stat().st_mode & 0o777 for path in mirror.store_path.rglob("*")}
        modes |= {str(path): path.stat().st_mode & 0o777 for path in mirror.store_path.rglob("*")}
    finally:
        os.umask(old)
    assert {path: oct(mode) for path, mode in modes.items() if mode & 0o077} == {}
