"""Room for imports: limits with both figures, eviction, a full disk, and how many imports run at a time."""

import asyncio
import contextlib
import errno
import os

import pytest

from mirror.core.digest import Digest
from mirror.errors import StorageError
from mirror.storage.blobs import BlobFiles
from mirror.storage.layout import Layout
from mirror.storage.space_quota import SpaceQuota
from mirror.storage.staging import Staging
from mirror.transfer.imports import MAX_IMPORTS
from mirror.transfer.receiver import BundleReceiver
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import MIB, TAG, content, manifest_path, sha256
from tests.support.waiting import eventually
from tests.transfer.bundles import Image, Tar, bundle, contents, layout, named
from tests.transfer.conftest import sender
from tests.transfer.test_interrupted_imports import Upload, stored

NAME = "docker.io/library/app:1"


@pytest.fixture
def store_layout(tmp_path):
    layout = Layout(str(tmp_path / "store"))
    layout.prepare()
    return layout


async def test_larger_than_the_store(hub, tmp_path):
    async with MirrorUnderTest(hub, tmp_path / "store", storage={"max_size": "2MiB"}) as mirror:
        sent = await sender(mirror)(bundle(NAME, Image(content(3 * MIB))))
        assert sent.status == 400
        assert "3MiB" in sent.error
        assert "storage.max_size is 2MiB" in sent.error
        assert not stored(mirror.store_path)
        assert mirror.store.quota.used() == 0


async def test_larger_than_its_registry(hub, mirror):
    await mirror.reload(registries={"docker.io": {"upstreams": [hub.url], "offline": True, "max_size": "2MiB"}})
    sent = await sender(mirror)(bundle(NAME, Image(content(3 * MIB))))
    assert sent.images[0].result == "refused"
    assert "registries.docker.io.max_size is 2MiB" in sent.images[0].cause
    assert not stored(mirror.store_path)
    # What fits counts for the registry.
    assert (await sender(mirror)(bundle(NAME, Image(content(MIB))))).images[0].result == "imported"
    assert mirror.store.quota.mark().of("docker.io").used >= MIB


async def test_two_images_are_larger_than_their_registry(hub, mirror):
    """The second does not evict the first, which was reported as imported."""
    await mirror.reload(registries={"docker.io": {"upstreams": [hub.url], "offline": True, "max_size": "2MiB"}})
    base = content(MIB)
    one, two, three = Image(base, content(MIB // 2, 2)), Image(base, content(3 * MIB // 4, 3)), Image(base, content(MIB // 4, 4))
    names = [named(image, f"docker.io/library/app:{tag}") for tag, image in enumerate((one, two, three))]
    sent = await sender(mirror)(layout(names, contents(one, two, three)))
    assert [image.result for image in sent.images] == ["imported", "refused", "imported"]
    assert "the images before it need 2.3MiB, and registries.docker.io.max_size is 2MiB" in sent.images[1].cause
    for tag, image in ((0, one), (2, three)):
        assert (await mirror.get(manifest_path(str(tag)))).body == image.raw
        for blob in image.blobs:
            assert mirror.holds(sha256(blob))
    # The next import makes room as a pull does.
    assert (await sender(mirror)(bundle("docker.io/library/app:3", two))).images[0].result == "imported"


async def test_room_within_a_registry(hub, tmp_path, blobs_only):
    """A registry at its limit evicts its own content only: what arrives has its room in the store already."""
    other = "other.example"
    registries = {name: {"upstreams": [hub.url], "max_size": size} for name, size in (("docker.io", "4MiB"), (other, "0"))}
    async with MirrorUnderTest(hub, tmp_path / "store", storage={"max_size": "10MiB"}, registries=registries) as mirror:
        send, kept, old, new = (
            sender(mirror),
            Image(content(4 * MIB, 1)),
            Image(content(3 * MIB // 2, 2)),
            Image(content(3 * MIB)),
        )
        for name, image in ((f"{other}/library/app:1", kept), ("docker.io/library/app:1", old)):
            assert (await send(bundle(name, image))).images[0].result == "imported"
        assert (await send(bundle("docker.io/library/app:2", new))).images[0].result == "imported"
        assert [mirror.holds(sha256(image.layers[0])) for image in (kept, old, new)] == [True, False, True]


@pytest.mark.parametrize("evicts", [True, False])
def test_room_is_made_in_several_attempts(store_layout, evicts):
    """An attempt that has removed something is followed by another; one that has removed nothing is the last."""
    quota = SpaceQuota(store_layout, 4 * MIB, 0)
    files, attempts = BlobFiles(store_layout, quota), []
    held = [content(MIB, number) for number in range(3)]
    for blob in held:
        files.put(Digest.of(blob), blob)

    def make_room(size):
        attempts.append(size)
        if evicts:
            files.delete(Digest.of(held.pop()))

    staging = Staging(store_layout, quota)
    receiver, data = BundleReceiver(files, staging, make_room), content(5 * MIB // 2, 9)
    with contextlib.closing(staging):
        if evicts:
            receiver.feed(Tar().add(f"blobs/sha256/{Digest.of(data).encoded}", data).close())
            assert not receiver.by_digest[Digest.of(data)].damage
        else:
            with pytest.raises(StorageError, match="no room"):
                receiver.feed(Tar().add(f"blobs/sha256/{Digest.of(data).encoded}", data).close())
    assert len(attempts) == (2 if evicts else 1)


async def test_room_is_made(hub, tmp_path, blobs_only):
    """What was used least recently goes, as for a pull."""
    async with MirrorUnderTest(hub, tmp_path / "store", storage={"max_size": "4MiB"}) as mirror:
        held = hub.add_image("library/app", "1", [content(2 * MIB, 2)])
        for path in (TAG, f"/v2/library/app/blobs/{held.layers[0].digest}"):
            assert (await mirror.get(path)).status == 200
        await mirror.idle()
        image = Image(content(3 * MIB))
        assert (await sender(mirror)(bundle("docker.io/library/new:1", image))).images[0].result == "imported"
        assert not mirror.holds(held.layers[0].digest)
        assert (await mirror.get(manifest_path("1", "library/new"))).body == image.raw


async def test_full_disk(mirror, send, monkeypatch):
    """It is said, and nothing stays."""
    real = os.write

    def write(descriptor, data):
        if "imports" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data)

    monkeypatch.setattr("mirror.storage.staging.os.write", write)
    sent = await send(bundle(NAME, Image(content(MIB))))
    assert (sent.status, "No space left" in sent.error) == (503, True)
    assert not stored(mirror.store_path)
    assert mirror.store.quota.used() == 0


async def test_failed_flush(mirror, send, monkeypatch):
    """The next image with the same content does not take it for written: fsync reports that once."""
    real, real_commit, failing = os.fsync, BlobFiles.commit, [True]

    def commit(self, path, descriptor, digest):
        def fsync(flushed):
            if flushed == descriptor and failing:
                failing.clear()
                raise OSError(errno.EIO, "Input/output error")
            real(flushed)

        monkeypatch.setattr("mirror.storage.blobs.os.fsync", fsync)
        real_commit(self, path, descriptor, digest)

    monkeypatch.setattr(BlobFiles, "commit", commit)
    # Layers are stored after the config, which both have, too.
    one, two = Image(b"one"), Image(b"one", annotations={"is": "other"})
    data = layout([named(one, NAME), named(two, "docker.io/library/app:2")], contents(one, two))
    sent = await send(data)
    assert [image.result for image in sent.images] == ["refused", "refused"]
    assert "could not be written to the disk" in sent.images[1].cause
    assert (await mirror.get(manifest_path("2"))).status == 404
    assert [image.result for image in (await send(data)).images] == ["imported", "imported"]


async def test_failed_flush_of_what_arrives(mirror, send, monkeypatch):
    """It is seen before the file is closed: later it may be forgotten."""
    real = os.fsync

    def fsync(descriptor):
        if "/imports/" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    monkeypatch.setattr("mirror.storage.staging.os.fsync", fsync)
    sent = await send(bundle(NAME, Image(b"one")))
    assert (sent.status, "Input/output error" in sent.error) == (503, True)
    assert not stored(mirror.store_path)


async def test_imports_at_a_time(mirror, send):
    data = bundle(NAME, Image(content(4 * MIB)))
    uploads = [Upload(mirror.admin_port, data) for _ in range(MAX_IMPORTS)]
    for upload in uploads:
        await upload.begin(MIB)
    await eventually(lambda: len(list((mirror.store_path / "imports").glob("*.lock"))) == MAX_IMPORTS)
    sent = await send(data)
    assert (sent.status, "imports are running" in sent.error) == (429, True)
    for upload in uploads:
        await upload.leave()
    await eventually(lambda: not stored(mirror.store_path))
    async with asyncio.timeout(60):
        while (await send(data)).status == 429:
            await asyncio.sleep(0)


async def test_content_that_is_evicted_meanwhile(mirror, send, monkeypatch):
    """A bundle whose content was held when it arrived, and is gone at the end, is no whole image."""
    image = Image(b"one")
    await send(bundle(NAME, image))
    real = type(mirror.store.files).touch

    def evict(files, digest, when):
        real(files, digest, when)
        files.delete(digest)

    monkeypatch.setattr(type(mirror.store.files), "touch", evict)
    sent = await send(bundle("docker.io/library/app:2", image))
    assert (sent.images[0].result, "evicted" in sent.images[0].cause) == ("refused", True)


@pytest.mark.parametrize("damage", [b"short", b""])
async def test_damaged_content_is_replaced(mirror, send, damage):
    """A file of another size than its content is not held, whatever its name is."""
    image = Image(b"one")
    await send(bundle(NAME, image))
    path = mirror.blob_path("sha256:" + image.descriptor()["digest"][7:])
    path.chmod(0o600)
    path.write_bytes(damage)
    assert (await send(bundle(NAME, image))).images[0].result == "unchanged"
    assert path.read_bytes() == image.raw
