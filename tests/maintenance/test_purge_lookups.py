"""What a purge looks at, and what happens to images that arrive while it is under way."""

import json
import sqlite3

import pytest

from mirror.core.digest import Digest
from mirror.core.freshness import TagRecord
from mirror.core.manifest import parse_manifest
from mirror.core.names import ImagePattern, Repository, Tag
from mirror.errors import StorageError
from mirror.maintenance.purge import Purge, PurgeRequest
from mirror.storage.blobs import BlobFiles
from mirror.storage.generation import Generation
from mirror.storage.images import images
from mirror.storage.index import Index
from mirror.storage.layout import Layout
from mirror.storage.manifests import ManifestRecord
from mirror.storage.parts import parts_of
from mirror.storage.space_quota import SpaceQuota

OCI = "application/vnd.oci.image"
MANIFEST, INDEX = f"{OCI}.manifest.v1+json", f"{OCI}.index.v1+json"


class Files(BlobFiles):
    """Files that remember which of them were read."""

    def __init__(self, layout):
        super().__init__(layout, SpaceQuota(layout, 0, 0))
        self.seen = []

    def read(self, digest, limit):
        self.seen.append(digest)
        return super().read(digest, limit)


class World:
    """A store with images in it, and purges of it."""

    def __init__(self, root):
        layout = Layout(str(root))
        layout.prepare()
        self.files, self.index = Files(layout), Index(layout.index)
        self.generation = Generation(f"{layout.root}/generation")

    def add(self, repository, tag, *layers, parts=True):
        """An image of these layers; returns the digest of its manifest."""
        entries = [self._entry(layer, f"{OCI}.layer.v1.tar") for layer in layers]
        body = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self._entry(b"{}", f"{OCI}.config.v1+json"),
            "layers": entries,
        }
        return self._put(repository, tag, body, MANIFEST, parts=parts)

    def add_index(self, repository, tag, *children):
        entries = [{"digest": str(child), "size": 1, "mediaType": MANIFEST} for child in children]
        return self._put(repository, tag, {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}, INDEX)

    def name(self, repository, tag, digest, checked=1.0):
        self.index.tags.put(repo(repository), Tag.parse(tag), TagRecord(digest, MANIFEST, 1, checked, 1.0, 1.0))

    def purge(self, pattern, **fields):
        return Purge(self.files, self.index, self.generation).carry_out(PurgeRequest(ImagePattern.parse(pattern), **fields))

    def holds(self, content):
        return self.files.size(content if isinstance(content, Digest) else Digest.of(content)) is not None

    def close(self):
        self.index.close()
        self.generation.close()

    def _entry(self, data, media_type):
        self.files.put(Digest.of(data), data)
        return {"digest": str(Digest.of(data)), "size": len(data), "mediaType": media_type}

    def _put(self, repository, tag, body, media_type, *, parts=True):
        raw = json.dumps(body).encode()
        digest, name = Digest.of(raw), repo(repository)
        if parts:
            self.index.parts.put(name, digest, parts_of(parse_manifest(raw, media_type, digest)))
        self.index.manifests.put(name, digest, ManifestRecord(media_type, len(raw)))
        self.files.put(digest, raw)
        if tag is not None:
            self.name(repository, tag, digest)
        return digest


def repo(path):
    return Repository.parse("docker.io", path)


@pytest.fixture
def world(tmp_path):
    one = World(tmp_path / "store")
    yield one
    one.close()


def arriving(world, arrive):
    """Have something arrive when the names have gone, and nothing else yet."""
    change = world.generation.change

    def changed():
        world.generation.change = change
        arrive()
        change()

    world.generation.change = changed


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize("pattern", ["team/app:7", "team/app:[7]"])
def test_reads_what_goes_only(world, dry_run, pattern):
    """A purge of one image reads that image's manifest, and none of those that stay, however much they share with it."""
    digests = [world.add("team/app", str(number), b"base", b"own %d" % number) for number in range(20)]
    world.add("team/other", "1", b"base")
    world.files.seen.clear()
    purged = world.purge(pattern, dry_run=dry_run)
    assert set(world.files.seen) == {digests[7]}
    assert (purged.tags, purged.manifests, purged.blobs) == (1, 1, 1)
    assert world.holds(b"base")
    assert world.holds(b"own 7") == dry_run


def test_reads_nothing_of_other_images_for_a_list(world):
    """A list of one image's tags reads the manifests of its repository only."""
    mine, other = world.add("team/app", "1", b"a"), world.add("team/other", "1", b"b")
    world.files.seen.clear()
    assert [image.digest for image in images(world.files, world.index, ImagePattern.parse("team/app"))] == [mine]
    assert other not in world.files.seen


def test_image_that_arrives_meanwhile(world):
    """An image that arrives while another one is purged keeps every layer, also those that only the other one had."""
    world.add("team/app", "1", b"base", b"shared", b"own")
    arriving(world, lambda: world.add("team/new", "1", b"base", b"shared"))
    assert world.purge("team/app:1").blobs == 1
    assert world.holds(b"base")
    assert world.holds(b"shared")
    assert not world.holds(b"own")


def test_tag_that_comes_to_name_it_meanwhile(world):
    """A manifest that another tag is found to name while its tag is purged stays, with the right to it."""
    digest = world.add("team/app", "1", b"layer")
    arriving(world, lambda: world.name("team/app", "2", digest))
    purged = world.purge("team/app:1")
    assert (purged.tags, purged.manifests, purged.blobs) == (1, 0, 0)
    assert world.holds(digest)
    assert world.holds(b"layer")


def test_tag_that_moves_meanwhile(world):
    """What a tag is found to name while it is purged is not what was to go, and stays."""
    world.add("team/app", "1", b"old")
    moved = []
    forget = world.index.tags.delete_unchanged

    def moving(*entry):
        moved.append(world.add("team/app", "1", b"new"))
        world.name("team/app", "1", moved[0], checked=2.0)
        return forget(*entry)

    world.index.tags.delete_unchanged = moving
    purged = world.purge("team/app:1")
    assert purged.tags == 0
    assert world.index.tags.get(repo("team/app"), Tag.parse("1")).digest == moved[0]
    assert world.holds(b"new")
    assert not world.holds(b"old")


def test_same_image_that_arrives_again_meanwhile(world):
    """An image that is pulled again while it is purged, and is held under the same names as before, stays."""
    digest = world.add("team/app", "1", b"layer")
    forget = world.index.tags.delete_unchanged

    def pulled_again(*entry):
        forgotten = forget(*entry)
        world.index.manifests.put(repo("team/app"), digest, ManifestRecord(MANIFEST, 1))
        return forgotten

    world.index.tags.delete_unchanged = pulled_again
    purged = world.purge("team/app")
    assert (purged.tags, purged.manifests, purged.blobs) == (1, 0, 0)
    assert world.holds(digest)
    assert world.holds(b"layer")
    world.index.tags.delete_unchanged = forget
    assert world.purge("team/app").manifests == 1
    assert not world.holds(b"layer")


def test_image_that_only_an_index_needs(world):
    """A manifest that goes from one repository stays with its layers if an index elsewhere names it; also in later purges."""
    child = world.add("team/app", "1", b"layer")
    world.add_index("team/multi", "1", child)
    assert world.purge("team/app").tags == 1
    assert world.holds(child)
    world.add("team/third", "1", b"layer")
    assert world.purge("team/third").blobs == 0
    assert world.holds(b"layer")
    assert world.purge("team/multi").manifests == 2
    assert not world.holds(b"layer")


def test_deep_index_in_its_repository(world):
    """What a tagged index of the same repository needs stays there, under whatever name else it goes."""
    child = world.add("team/app", "amd64", b"layer")
    world.add_index("team/app", "1", child)
    assert world.purge("team/app:amd64").manifests == 0
    assert world.index.manifests.get(repo("team/app"), child) is not None


def test_store_of_an_earlier_version(world, tmp_path):
    """Rows that were written without what they name, and without labels, count in the first purge as all others do."""
    world.add("team/app", "1", b"base", b"own", parts=False)
    world.add("team/other", "1", b"base", parts=False)
    world.index.close()
    for table in ("tags", "manifests", "parts"):
        database = sqlite3.connect(tmp_path / f"store/index/{table}/cache.db")
        with database:
            database.execute("UPDATE Cache SET tag = NULL")
            database.execute("PRAGMA user_version = 0")
            database.execute("DELETE FROM Cache WHERE key = 'complete'")
        database.close()
    world.index = Index(str(tmp_path / "store/index"))
    assert world.purge("team/app").blobs == 1
    assert world.holds(b"base")
    assert not world.holds(b"own")
    assert world.index.parts.is_complete


def test_index_that_cannot_be_read(world, tmp_path):
    """If the index does not tell what needs a blob, nothing is removed, and the purge says so."""
    world.add("team/app", "1", b"base")
    world.add("team/other", "1", b"base")

    def break_it():
        database = sqlite3.connect(tmp_path / "store/index/parts/cache.db")
        with database:
            database.execute("DROP TABLE Cache")
        database.close()

    arriving(world, break_it)
    with pytest.raises(StorageError):
        world.purge("team/app")
    assert world.holds(b"base")
