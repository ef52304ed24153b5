"""Copies by the real skopeo, which shares its code with podman, buildah and CRI-O."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness.mirror import Mirror
from tests.e2e.harness.samples import Samples
from tests.e2e.harness.skopeo import CopyError, Skopeo
from tests.e2e.harness.upstream import Upstream

pytestmark = pytest.mark.e2e

# How a client can name the mirror's library/app: as a registry, by registries.conf, by a path that names
# the registry, and by Docker Hub's short name.
WAYS = ["direct", "registries.conf", "path", "short"]


@pytest.fixture(scope="module")
def skopeo(directory: Path, numbers: Iterator[int], mirror: Mirror) -> Skopeo:
    """skopeo with the mirror in its registries.conf."""
    return Skopeo(directory / f"skopeo-{next(numbers)}", mirror.port)


def source(way: str, mirror: Mirror, image: str) -> str:
    """The source argument that leads to docker.io/library/IMAGE through the mirror."""
    sources = {
        "direct": f"127.0.0.1:{mirror.port}/library/{image}",
        "registries.conf": f"docker.io/library/{image}",
        "path": f"127.0.0.1:{mirror.port}/docker.io/library/{image}",
        "short": f"127.0.0.1:{mirror.port}/{image}",
    }
    return sources[way]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("image", ["app:1", "oci:1", "single:1"])
def test_copy_equals_a_copy_from_the_upstream(way: str, image: str, skopeo: Skopeo, mirror: Mirror, upstream: Upstream) -> None:
    """A copy through the mirror has the same files, byte for byte, as one straight from the upstream."""
    expected = skopeo.copy(f"127.0.0.1:{upstream.port}/library/{image}")

    copied = skopeo.copy(source(way, mirror, image))

    assert copied == expected


@pytest.mark.parametrize("image", ["app:1", "oci:1"])
def test_copy_of_all_platforms(image: str, skopeo: Skopeo, mirror: Mirror, upstream: Upstream) -> None:
    """A copy with --all has the index and every platform's manifests and blobs."""
    expected = skopeo.copy(f"127.0.0.1:{upstream.port}/library/{image}", "--all")

    copied = skopeo.copy(source("registries.conf", mirror, image), "--all")

    assert copied == expected


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["app", "oci", "single"])
def test_raw_manifest_is_byte_for_byte_the_pushed_one(
    way: str, name: str, skopeo: Skopeo, mirror: Mirror, samples: Samples
) -> None:
    """`skopeo inspect --raw` through the mirror gives the bytes that were pushed."""
    assert skopeo.raw_manifest(source(way, mirror, f"{name}:1")) == getattr(samples, name).manifest.data


@pytest.mark.parametrize("way", WAYS)
def test_copy_by_digest(way: str, skopeo: Skopeo, mirror: Mirror, upstream: Upstream, samples: Samples) -> None:
    """A copy by the digest of a platform's manifest equals one straight from the upstream."""
    image = f"app@{samples.app.for_host().manifest.digest}"
    expected = skopeo.copy(f"127.0.0.1:{upstream.port}/library/{image}")

    copied = skopeo.copy(source(way, mirror, image))

    assert copied == expected


def test_tag_list_equals_the_upstreams(skopeo: Skopeo, mirror: Mirror, upstream: Upstream, samples: Samples) -> None:
    """`skopeo list-tags` through the mirror lists the tags that the upstream has."""
    upstream.push(samples.single, "library/tagged", "first")
    upstream.push(samples.single, "library/tagged", "second")

    listed = json.loads(skopeo.tags(source("direct", mirror, "tagged")))

    assert sorted(listed["Tags"]) == ["first", "second"]


def test_warm_copy_downloads_nothing_from_the_upstream(skopeo: Skopeo, mirror: Mirror, upstream: Upstream) -> None:
    """A second copy, by another way, is served without one GET of a manifest or blob upstream."""
    first = skopeo.copy(source("direct", mirror, "app:1"))
    position = len(upstream.asked())

    second = skopeo.copy(source("registries.conf", mirror, "app:1"))

    assert second == first
    assert upstream.downloads_since(position) == []


def test_unknown_image_is_said_to_be_unknown(skopeo: Skopeo, mirror: Mirror) -> None:
    """A copy of an image that the upstream does not have fails with the mirror's `unknown` error."""
    with pytest.raises(CopyError, match="unknown"):
        skopeo.copy(source("direct", mirror, "missing:1"))
