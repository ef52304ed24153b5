"""Manifests are kept to the byte, told apart correctly, and refused for any contradiction."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core import media
from mirror.core.digest import Digest
from mirror.core.errors import DigestMismatch, InvalidManifest
from mirror.core.manifest import ManifestKind, Platform, parse_manifest

CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "size": 2, "digest": str(Digest.of(b"c"))}
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "size": 3, "digest": str(Digest.of(b"l"))}
FOREIGN = {**LAYER, "mediaType": media.DOCKER_FOREIGN_LAYER, "urls": ["https://example.com/l"]}
CHILD = {
    "mediaType": media.OCI_MANIFEST,
    "size": 4,
    "digest": str(Digest.of(b"m")),
    "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"},
}
MANIFEST = {"schemaVersion": 2, "config": CONFIG, "layers": [LAYER]}
INDEX = {"schemaVersion": 2, "manifests": [CHILD]}
SCHEMA1 = {"schemaVersion": 1, "fsLayers": [], "signatures": []}

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=12,
)


def parse(body, content_type=None, expected=None):
    return parse_manifest(json.dumps(body).encode(), content_type, expected)


def test_image_manifest():
    """Config and layers become the blobs, in this order, and the type is that of the header."""
    raw = json.dumps({**MANIFEST, "layers": [LAYER, FOREIGN]}, indent=3).encode() + b"\n"
    manifest = parse_manifest(raw, media.DOCKER_MANIFEST + "; charset=utf-8", None)
    assert manifest.raw == raw
    assert manifest.digest == Digest.of(raw)
    assert manifest.media_type == media.DOCKER_MANIFEST
    assert manifest.kind is ManifestKind.MANIFEST
    assert manifest.children == ()
    assert manifest.config == manifest.blobs[0]
    assert [blob.digest for blob in manifest.blobs] == [Digest.of(b"c"), Digest.of(b"l"), Digest.of(b"l")]
    assert [blob.is_foreign for blob in manifest.blobs] == [False, False, True]
    assert [blob.is_manifest for blob in manifest.blobs] == [False, False, False]


def test_index():
    """The entries of an index are its children, with their platforms."""
    layer_of_a_build_cache = LAYER
    manifest = parse({**INDEX, "manifests": [CHILD, layer_of_a_build_cache]}, media.OCI_INDEX)
    assert manifest.kind is ManifestKind.INDEX
    assert manifest.blobs == ()
    assert manifest.children[0].platform == Platform("linux", "arm64", "v8")
    assert manifest.children[0].size == 4
    assert [child.is_manifest for child in manifest.children] == [True, False]


def test_subject_and_artifact_type():
    """A manifest that refers to another one names it as its subject."""
    manifest = parse({**MANIFEST, "subject": CHILD, "artifactType": "application/spdx+json"}, media.OCI_MANIFEST)
    assert manifest.subject is not None
    assert manifest.subject.digest == Digest.of(b"m")
    assert manifest.artifact_type == "application/spdx+json"


def test_artifact_manifest():
    """The blobs of an artifact manifest are its blobs, and it has no children."""
    manifest = parse({"mediaType": media.OCI_ARTIFACT, "blobs": [LAYER], "manifests": [CHILD]})
    assert manifest.kind is ManifestKind.ARTIFACT
    assert [blob.digest for blob in manifest.blobs] == [Digest.of(b"l")]
    assert manifest.children == ()


@pytest.mark.parametrize(
    ("body", "content_type", "expected"),
    [
        (MANIFEST, media.DOCKER_MANIFEST, media.DOCKER_MANIFEST),
        ({**MANIFEST, "mediaType": media.OCI_MANIFEST}, media.DOCKER_MANIFEST, media.DOCKER_MANIFEST),
        ({**MANIFEST, "mediaType": media.DOCKER_MANIFEST}, None, media.DOCKER_MANIFEST),
        ({**MANIFEST, "mediaType": media.DOCKER_MANIFEST}, "application/json", media.DOCKER_MANIFEST),
        ({**INDEX, "mediaType": media.DOCKER_LIST}, "text/plain; charset=utf-8", media.DOCKER_LIST),
        (MANIFEST, None, media.OCI_MANIFEST),
        (MANIFEST, "application/octet-stream", media.OCI_MANIFEST),
        ({**MANIFEST, "mediaType": 7}, None, media.OCI_MANIFEST),
        (INDEX, None, media.OCI_INDEX),
        ({"manifests": []}, None, media.OCI_INDEX),
        ({"manifests": None}, media.OCI_INDEX, media.OCI_INDEX),
        ({**MANIFEST, "layers": None, "manifests": None}, media.OCI_MANIFEST, media.OCI_MANIFEST),
        (SCHEMA1, None, media.SCHEMA1_SIGNED),
        (SCHEMA1, "text/plain", media.SCHEMA1_SIGNED),
        ({"schemaVersion": 1, "fsLayers": []}, None, media.SCHEMA1),
    ],
)
def test_media_type(body, content_type, expected):
    """The header decides if it names a manifest's type, then the body's mediaType, then the shape."""
    assert parse(body, content_type).media_type == expected


@pytest.mark.parametrize("algorithm", ["sha256", "sha512"])
def test_expected_digest(algorithm):
    """The digest is computed with the algorithm that was asked for, over the bytes as they are."""
    raw = json.dumps(MANIFEST).encode()
    expected = Digest.of(raw, algorithm)
    assert parse_manifest(raw, None, expected).digest == expected
    with pytest.raises(DigestMismatch):
        parse_manifest(raw + b"\n", None, expected)


def test_schema1_is_recognised_and_not_verified():
    """The digest of a schema 1 manifest is not over its body, so another hash is no mismatch."""
    expected = Digest.of(b"the payload without signatures")
    manifest = parse(SCHEMA1, media.SCHEMA1_SIGNED, expected)
    assert manifest.kind is ManifestKind.SCHEMA1
    assert manifest.digest == expected


def test_schema1_is_no_way_around_the_digest():
    """A body that is not schema 1 is refused under a schema 1 type, whose digest nobody checks."""
    with pytest.raises(InvalidManifest):
        parse(MANIFEST, media.SCHEMA1_SIGNED, Digest.of(b"other"))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{}",
        b"{",
        b"<!DOCTYPE html><html>Please log in</html>",
        b"\xff\xfe{}",
        '{"manifests": []}'.encode("utf-16"),
        b'\xef\xbb\xbf{"manifests": []}',
        b'{"errors": [{"code": "DENIED"}]}',
        b'{"manifests": [], "x": NaN}',
        b'{"manifests": [], "x": ' + b"[" * 200_000,
        b'{"manifests": [], "x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"manifests": [], "x": ' + b"9" * 10_000 + b"}",
    ],
)
@pytest.mark.parametrize("content_type", [None, "text/html", media.OCI_INDEX, media.OCI_MANIFEST])
def test_what_is_no_manifest(raw, content_type):
    """Pages, error bodies, other encodings and broken or hostile JSON are refused under any type."""
    with pytest.raises(InvalidManifest):
        parse_manifest(raw, content_type, None)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ({**MANIFEST, **INDEX}, media.OCI_MANIFEST),
        ({**MANIFEST, **INDEX}, media.OCI_INDEX),
        ({**MANIFEST, **INDEX}, None),
        (MANIFEST, media.OCI_INDEX),
        (INDEX, media.OCI_MANIFEST),
        (SCHEMA1, media.OCI_MANIFEST),
        ({"layers": [LAYER]}, None),
        ({**INDEX, "mediaType": media.OCI_MANIFEST}, None),
    ],
)
def test_ambiguous_manifests(body, content_type):
    """A body that could be taken for two things, or is not what its type says, raises InvalidManifest."""
    with pytest.raises(InvalidManifest):
        parse(body, content_type)


@pytest.mark.parametrize(
    "change",
    [
        {"digest": None},
        {"digest": 7},
        {"digest": "sha256:abc"},
        {"digest": "md5:" + "a" * 32},
        {"digest": "sha256:" + "A" * 64},
        {"size": -1},
        {"size": None},
        {"size": "3"},
        {"size": 1.0},
        {"size": True},
        {"size": 2**63},
        {"mediaType": 5},
        {"mediaType": "\ud800"},
        {"mediaType": "a/b\r\nX: y"},
        {"urls": "https://example.com"},
        {"urls": [1]},
        {"platform": "linux"},
        {"platform": {"os": 1}},
        {"artifactType": []},
    ],
)
@pytest.mark.parametrize("place", ["config", "layers", "manifests", "subject"])
def test_bad_descriptors(place, change):
    """A descriptor with a wrong digest, size or type raises InvalidManifest wherever it stands."""
    bad = {**CHILD, **change}
    body = {
        "config": {**MANIFEST, "config": bad},
        "layers": {**MANIFEST, "layers": [LAYER, bad]},
        "manifests": {"manifests": [CHILD, bad]},
        "subject": {**MANIFEST, "subject": bad},
    }[place]
    with pytest.raises(InvalidManifest):
        parse(body)


@pytest.mark.parametrize(
    "body",
    [
        {"manifests": {}},
        {"manifests": "x"},
        {"manifests": [None]},
        {"manifests": [[]]},
        {**MANIFEST, "layers": {}},
        {**MANIFEST, "config": []},
        {**MANIFEST, "subject": "x"},
        {**MANIFEST, "artifactType": 1},
    ],
)
def test_wrong_types(body):
    """A member of the wrong JSON type raises InvalidManifest."""
    with pytest.raises(InvalidManifest):
        parse(body)


def test_a_platform_may_be_incomplete():
    """An index entry with an empty platform is accepted and matches nothing that is asked for."""
    child = parse({"manifests": [{**CHILD, "platform": {}}]}).children[0]
    assert child.platform == Platform("", "", "")
    assert not Platform.parse("linux/amd64").matches(child.platform)


@given(
    st.binary(max_size=64),
    st.none() | st.text(max_size=20) | st.sampled_from([media.OCI_INDEX, media.OCI_MANIFEST, media.SCHEMA1]),
)
def test_arbitrary_bytes(raw, content_type):
    """No bytes make the parser raise anything but InvalidManifest."""
    with pytest.raises(InvalidManifest):
        parse_manifest(raw, content_type, None)


@given(
    st.sampled_from([MANIFEST, INDEX]),
    st.dictionaries(
        st.sampled_from(["config", "layers", "manifests", "subject", "mediaType", "blobs", "fsLayers", "schemaVersion"]),
        json_values | st.lists(st.dictionaries(st.sampled_from([*CHILD, "urls"]), json_values), max_size=2),
    ),
    st.none() | st.sampled_from([media.OCI_INDEX, media.OCI_MANIFEST, media.OCI_ARTIFACT, media.SCHEMA1]),
)
def test_arbitrary_json(base, changes, content_type):
    """Whatever JSON stands in a manifest, it parses with its bytes untouched or raises InvalidManifest."""
    raw = json.dumps({**base, **changes}).encode()
    try:
        manifest = parse_manifest(raw, content_type, None)
    except InvalidManifest:
        return
    assert manifest.raw == raw
    assert manifest.digest == Digest.of(raw)
