"""What an interrupted import has brought goes, and nothing of it is ever visible; images that are whole stay."""

import asyncio
import contextlib
import errno
import io
import os
import signal

import aiohttp
import pytest

from mirror.core.digest import Digest
from mirror.errors import StorageError
from mirror.maintenance.interrupted_imports import InterruptedImports
from mirror.storage.blobs import BlobFiles
from mirror.transfer.publisher import Publisher
from tests.support.names import MIB, blob_path, content, manifest_path, sha256
from tests.support.waiting import eventually
from tests.transfer.bundles import Image, bundle, contents, layout, named
from tests.workers.cluster import Cluster

NAME = "docker.io/library/app:1"


class Upload:
    """A bundle of which a part is sent."""

    def __init__(self, port, data):
        self._port, self._data = port, data

    async def begin(self, size):
        """Send the head of the request and so many bytes of its body."""
        _, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = ["POST /api/v1/import HTTP/1.1", "Host: localhost", "Content-Type: application/x-tar"]
        self._writer.write("\r\n".join([*head, f"Content-Length: {len(self._data)}", "", ""]).encode() + self._data[:size])
        await self._writer.drain()

    async def leave(self):
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


def stored(store_path):
    """The bytes that imports and images take in a store."""
    return [path for below in ("imports", "blobs") for path in (store_path / below).rglob("*") if path.is_file()]


async def test_client_that_leaves(mirror):
    """Ctrl-C of the command: what had arrived is removed at once."""
    upload = Upload(mirror.admin_port, bundle(NAME, Image(content(4 * MIB))))
    await upload.begin(3 * MIB)
    await eventually(lambda: any(path.stat().st_blocks * 512 >= MIB for path in stored(mirror.store_path)))
    # A count of the files finds what is staged, too.
    used = mirror.store.quota.used()
    await asyncio.to_thread(mirror.services.janitor.count)
    assert mirror.store.quota.used() == used > 4 * MIB
    assert await asyncio.to_thread(lambda: mirror.services.janitor.leftovers.reserved().busy) == used
    await upload.leave()
    await eventually(lambda: not stored(mirror.store_path))
    assert mirror.store.quota.used() == 0


@pytest.mark.parametrize("place", ["first commit", "second commit", "tag"])
async def test_failure_while_it_becomes_visible(mirror, send, monkeypatch, place):
    """The disk fails, or the process dies: content that has its place already is removed, but not what others need."""
    await mirror.reload(offline=True)
    base = Image(b"base")
    await send(bundle("docker.io/library/app:base", base))
    image, calls = Image(b"base", b"new"), []
    real = BlobFiles.commit

    def commit(self, *arguments):
        calls.append(arguments)
        if place != "tag" and len(calls) == ("first commit", "second commit").index(place) + 1:
            raise StorageError("the disk fails", "io")
        real(self, *arguments)

    async def switch(self, *_):
        raise StorageError("the process dies", "io")

    with monkeypatch.context() as patch:
        patch.setattr(BlobFiles, "commit", commit)
        if place == "tag":
            patch.setattr(Publisher, "_switch", switch)
        sent = await send(bundle(NAME, image))
    assert sent.images[0].result == "refused"
    await asyncio.to_thread(InterruptedImports(mirror.store).clear)
    await eventually(lambda: not list((mirror.store_path / "imports").iterdir()))
    paths = [manifest_path("1"), manifest_path(image.digest), *(blob_path(sha256(blob)) for blob in image.blobs[::2])]
    for path in paths:
        assert (await mirror.get(path)).status == 404
    for blob in base.blobs:
        assert (await mirror.get(blob_path(sha256(blob)))).body == blob
    assert len(stored(mirror.store_path)) == 3
    # Another attempt succeeds.
    assert (await send(bundle(NAME, image))).images[0].result == "imported"
    assert (await mirror.get(manifest_path("1"))).body == image.raw


async def test_whole_image_stays(mirror, send):
    """The process dies after the tag, before it has recorded the end."""
    image = Image(b"whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mirror.storage.staging.Staging.settle", lambda *_: None)
        await send(bundle(NAME, image))
    await asyncio.to_thread(InterruptedImports(mirror.store).clear)
    assert not list((mirror.store_path / "imports").iterdir())
    await mirror.reload(offline=True)
    assert (await mirror.get(manifest_path("1"))).body == image.raw
    for blob in image.blobs:
        assert (await mirror.get(blob_path(sha256(blob)))).body == blob


@pytest.mark.parametrize("place", ["image_check", "publisher"])
async def test_no_descriptor_is_left(mirror, send, monkeypatch, log, place):
    """Of two images one is refused with the cause, the other one is tagged, and the audit line names both."""
    good, bad, calls = Image(b"good"), Image(b"bad"), []

    def opened(path):
        calls.append(path)
        # An image has three files; its check opens its manifest alone.
        if len(calls) > (1 if place == "image_check" else 3):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return io.FileIO(path)

    monkeypatch.setattr(f"mirror.transfer.{place}.FileIO", opened)
    sent = await send(layout([named(good, NAME), named(bad, f"{NAME}-bad")], contents(good, bad)))
    assert [(one.name, one.result) for one in sent.images] == [(NAME, "imported"), (f"{NAME}-bad", "refused")], sent.answer
    assert os.strerror(errno.EMFILE) in sent.images[1].cause
    (line,) = (event for event in log if event["event"] == "audit")
    assert (line["images"], line["refused"]) == ([NAME], [f"{NAME}-bad"])


async def test_audit_line_of_an_import_that_ends_early(mirror, send, monkeypatch, log):
    """The mirror stops between two images: the line names the one that is tagged."""
    first, second, real = Image(b"first"), Image(b"second"), Publisher.publish

    async def publish(self, name, image):
        if image.root.digest == Digest.parse(second.digest):
            raise asyncio.CancelledError
        return await real(self, name, image)

    monkeypatch.setattr(Publisher, "publish", publish)
    with contextlib.suppress(aiohttp.ClientError):
        await send(layout([named(first, NAME), named(second, f"{NAME}-2")], contents(first, second)))
    await eventually(lambda: [event for event in log if event["event"] == "audit"])
    (line,) = (event for event in log if event["event"] == "audit")
    assert (line["images"], line["refused"]) == ([NAME], [])


async def test_killed_workers(hub, tmp_path):
    """SIGKILL of the process that imports: one that lives, or the one that is started for it, removes what it had brought."""
    async with Cluster(hub, tmp_path, offline=True) as cluster:
        upload = Upload(cluster.admin_port, bundle(NAME, Image(content(4 * MIB))))
        await upload.begin(3 * MIB)
        await eventually(lambda: any(path.stat().st_blocks * 512 >= MIB for path in stored(cluster.store)))
        for pid in cluster.workers():
            os.kill(pid, signal.SIGKILL)
        await cluster.logged("interrupted_import_cleared")
        assert not stored(cluster.store)
        assert (await cluster.get(manifest_path("1")))[0] == 404
        await upload.leave()
