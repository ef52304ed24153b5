"""The store that the benchmark of a million blobs makes is one that the mirror takes for its own."""

from bench.content import MANIFEST_TYPE
from bench.filled import TAGS, fill
from mirror.core.names import Repository, Tag
from mirror.maintenance import store_scan
from mirror.storage.blobs import BlobFiles
from mirror.storage.images import images
from mirror.storage.index import Index
from mirror.storage.layout import Layout
from mirror.storage.space_quota import SpaceQuota
from tests.support.mirrors import MirrorUnderTest


def test_filled_store(tmp_path):
    """Its account tells what a count of its files finds, and its images are complete."""
    filled = fill(tmp_path / "store", 300, 20)
    layout = Layout(str(tmp_path / "store"))
    layout.prepare()
    room = SpaceQuota(layout, 0, 0)
    held = store_scan.take(layout, lambda: False)
    assert held is not None
    assert (held.blobs, held.taken) == (300, filled.bytes)
    account = room.mark()
    assert (account.used, account.blobs) == (filled.bytes, 300)
    index = Index(layout.index)
    found = list(images(BlobFiles(layout, room), index))
    index.close()
    assert len(found) == 20 * TAGS
    assert all(image.complete for image in found)
    assert (Repository.parse("docker.io", "bench/image-0"), Tag("v0")) in {(image.repository, image.tag) for image in found}


async def test_filled_store_is_served(hub, tmp_path):
    """A mirror on it has every image, by tag, without asking upstream."""
    filled = fill(tmp_path / "store", 100, 5)
    async with MirrorUnderTest(hub, tmp_path / "store") as mirror:
        for path in filled.manifests + filled.small_blobs:
            answer = await mirror.get(path, headers={"Accept": MANIFEST_TYPE})
            assert (answer.status, answer.cache) == (200, "HIT")
    assert hub.count() == 0
