"""What manifests name, looked up both ways."""

import json

import pytest

from mirror.core.digest import Digest
from mirror.core.manifest import parse_manifest
from mirror.core.names import Repository
from mirror.storage.index import Index
from mirror.storage.manifests import ManifestRecord
from mirror.storage.parts import MAX_PARTS, Part, parts_of

ONE, OTHER = Repository.parse("docker.io", "team/one"), Repository.parse("docker.io", "team/other")
# Its path begins with that of another one.
LONGER = Repository.parse("docker.io", "team/one/more")
PORT = Repository.parse("[::1]:5000", "team/one")
IMAGE, INDEX = Digest.of(b"image"), Digest.of(b"index")
LAYER, CONFIG = Digest.of(b"layer"), Digest.of(b"config")
OCI = "application/vnd.oci.image"


@pytest.fixture
def index(tmp_path):
    one = Index(str(tmp_path / "index"))
    yield one
    one.close()


def test_both_ways_and_over_a_restart(index, tmp_path):
    """Parts are found by their manifest, and manifests by a part, now and after a restart, in one repository or in all."""
    parts = (Part("blob", CONFIG, 2), Part("blob", LAYER, 5))
    for repository in (ONE, LONGER, PORT):
        index.parts.put(repository, IMAGE, parts)
    index.parts.put(ONE, INDEX, (Part("manifest", IMAGE, 7),))
    again = Index(str(tmp_path / "index"))
    for found in (index.parts, again.parts):
        assert found.of(ONE, IMAGE) == parts
        assert found.naming("blob", ONE, LAYER) == [IMAGE]
        assert found.naming("manifest", ONE, IMAGE) == [INDEX]
        assert dict(found.sizes_named("blob", ONE, LAYER)) == {IMAGE: 5}
        assert set(found.naming_anywhere("blob", LAYER)) == {(ONE, IMAGE), (LONGER, IMAGE), (PORT, IMAGE)}
        assert set(found.manifests()) == {(ONE, IMAGE), (ONE, INDEX), (LONGER, IMAGE), (PORT, IMAGE)}
    again.close()


def test_nothing_is_named_elsewhere(index):
    """What one repository's manifest names is named neither in another one, nor as the other kind, nor unread."""
    index.parts.put(LONGER, IMAGE, (Part("blob", LAYER, 5),))
    for kind, repository in (("blob", ONE), ("blob", OTHER), ("manifest", LONGER)):
        assert index.parts.naming(kind, repository, LAYER) == []
        assert list(index.parts.sizes_named(kind, repository, LAYER)) == []
    assert index.parts.of(ONE, IMAGE) is None


def test_what_leads_to_a_part(index):
    """Each manifest on the way is found once, the nearest ones first, however many ways there are, within limits."""
    levels = [[Digest.of(f"{level} {n}".encode()) for n in range(6)] for level in range(6)]
    index.parts.put(ONE, IMAGE, (Part("blob", LAYER, 5),))
    for below, level in zip([[IMAGE], *levels], levels, strict=False):
        for manifest in level:
            index.parts.put(ONE, manifest, tuple(Part("manifest", digest, 1) for digest in below))
    # In a circle.
    index.parts.put(ONE, IMAGE, (Part("manifest", levels[0][0], 1),))
    asked = []
    naming, index.parts.naming = index.parts.naming, lambda *args: asked.append(args) or naming(*args)
    found = index.parts.leading_to("blob", ONE, LAYER, limit=1000, depth=3)
    assert found[0] == IMAGE
    assert [set(found[n : n + 6]) for n in (1, 7)] == [set(levels[0]), set(levels[1])]
    assert len(found) == len(set(found)) == 1 + 3 * 6
    assert len(asked) == 1 + 1 + 2 * 6
    assert index.parts.leading_to("blob", ONE, LAYER, limit=9, depth=3) == found[:9]
    assert index.parts.leading_to("blob", OTHER, LAYER, limit=9, depth=3) == []


def test_gone_with_the_manifest(index):
    """What a manifest names is forgotten with it, and what another one names stays."""
    for manifest in (IMAGE, INDEX):
        index.manifests.put(ONE, manifest, ManifestRecord(f"{OCI}.manifest.v1+json", 7))
        index.parts.put(ONE, manifest, (Part("blob", LAYER, 5),))
    index.delete_manifest(ONE, IMAGE)
    assert index.parts.of(ONE, IMAGE) is None
    assert index.parts.naming("blob", ONE, LAYER) == [INDEX]


def test_drop(index):
    """What manifests that are gone have named is dropped, and a walk is ended when that is wanted."""
    manifests = [Digest.of(str(number).encode()) for number in range(600)]
    for manifest in manifests:
        index.parts.put(ONE, manifest, (Part("blob", LAYER, 5),))
    assert 0 < index.parts.drop(lambda digest: digest == manifests[0], lambda: True) < 300
    assert index.parts.drop(lambda digest: digest == manifests[0]) > 300
    assert index.parts.naming("blob", ONE, LAYER) == [manifests[0]]


def test_parts_of_manifests():
    """Children are manifests unless their type says otherwise, config and layers are blobs, each once; a subject is no part."""

    def entry(digest, kind, **more):
        return {"digest": str(digest), "size": 3, "mediaType": kind, **more}

    layer = entry(LAYER, f"{OCI}.layer.v1.tar")
    image = {"schemaVersion": 2, "config": entry(CONFIG, f"{OCI}.config.v1+json"), "layers": [layer, layer]}
    image["subject"] = entry(INDEX, f"{OCI}.manifest.v1+json")
    found = parts_of(parse_manifest(json.dumps(image).encode(), f"{OCI}.manifest.v1+json", None))
    assert found == (Part("blob", CONFIG, 3), Part("blob", LAYER, 3))
    nested = {"schemaVersion": 2, "manifests": [entry(IMAGE, f"{OCI}.manifest.v1+json"), layer]}
    found = parts_of(parse_manifest(json.dumps(nested).encode(), f"{OCI}.index.v1+json", None))
    assert found == (Part("manifest", IMAGE, 3), Part("blob", LAYER, 3))


def test_too_many(index):
    """What names more than any image does is not recorded: the index does not grow by what a stranger writes."""
    index.parts.put(ONE, IMAGE, tuple(Part("blob", Digest.of(str(n).encode()), n) for n in range(MAX_PARTS + 1)))
    assert index.parts.of(ONE, IMAGE) is None
