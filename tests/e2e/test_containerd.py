"""Pulls by a real containerd with `ctr`: a hosts.toml names the mirror, `ns=` the registry."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness.client import request
from tests.e2e.harness.containerd import Containerd, PullError
from tests.e2e.harness.images import Index
from tests.e2e.harness.mirror import Mirror
from tests.e2e.harness.samples import Samples
from tests.e2e.harness.upstream import Upstream

pytestmark = pytest.mark.e2e

UNREACHABLE = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def service(directory: Path, numbers: Iterator[int]) -> Iterator[Containerd]:
    """One containerd for this file."""
    started = Containerd(directory / f"containerd-{next(numbers)}")
    try:
        yield started
    finally:
        started.close()


@pytest.fixture
def containerd(service: Containerd) -> Containerd:
    """The containerd, holding no image."""
    service.remove_all()
    return service


@pytest.fixture(scope="module")
def only_mirror(service: Containerd, mirror: Mirror) -> Path:
    """A hosts directory in which nothing but the mirror can be reached."""
    return service.hosts("only-mirror", "docker.io", UNREACHABLE, mirror.url)


def assert_holds(containerd: Containerd, reference: str, index: Index) -> None:
    """The reference stands for the index, whose own platform is there whole and unpacked."""
    image = index.for_host()
    wanted = {content.digest for content in (index.manifest, image.manifest, *image.blobs)}
    assert containerd.image_digest(reference) == index.manifest.digest
    assert wanted <= containerd.held_digests()
    assert containerd.unpacked() == len(image.layers)


@pytest.mark.parametrize("name", ["app", "oci"])
def test_pull_with_the_mirror_alone(
    name: str, containerd: Containerd, only_mirror: Path, mirror: Mirror, samples: Samples
) -> None:
    """When only the mirror can be reached, a pull gives the pushed index and this machine's platform."""
    reference = f"docker.io/library/{name}:1"

    containerd.pull(only_mirror, reference)

    assert_holds(containerd, reference, getattr(samples, name))


def test_pull_by_digest(containerd: Containerd, only_mirror: Path, mirror: Mirror, samples: Samples) -> None:
    """A pull by the digest of an index ends with that index."""
    reference = f"docker.io/library/oci@{samples.oci.manifest.digest}"

    containerd.pull(only_mirror, reference)

    assert_holds(containerd, reference, samples.oci)


def test_mirror_spares_the_server(containerd: Containerd, mirror: Mirror, upstream: Upstream, samples: Samples) -> None:
    """With the upstream itself as the server of last resort, containerd never has to turn to it."""
    hosts = containerd.hosts("with-server", "docker.io", upstream.url, mirror.url)
    reference = "docker.io/library/app:1"

    containerd.pull(hosts, reference)

    assert_holds(containerd, reference, samples.app)
    assert not [entry for entry in upstream.asked() if entry.agent.startswith("containerd/")]


def test_unconfigured_registry_is_left_to_its_server(
    containerd: Containerd, mirror: Mirror, upstream: Upstream, samples: Samples
) -> None:
    """For a registry that is not configured the mirror refuses, and containerd pulls from the server."""
    hosts = containerd.hosts("foreign", "registry.example", upstream.url, mirror.url)
    reference = "registry.example/library/oci:1"

    containerd.pull(hosts, reference)

    assert_holds(containerd, reference, samples.oci)
    direct = [entry for entry in upstream.asked() if entry.agent.startswith("containerd/")]
    assert {blob.digest for blob in samples.oci.for_host().blobs} <= {entry.reference for entry in direct}


def test_warm_pull_downloads_nothing_from_the_upstream(
    containerd: Containerd, only_mirror: Path, mirror: Mirror, upstream: Upstream, samples: Samples
) -> None:
    """Once pulled, an image that containerd has lost is served without one GET upstream."""
    reference = "docker.io/library/app:1"
    containerd.pull(only_mirror, reference)
    containerd.remove_all()
    assert containerd.held_digests() == set()
    position = len(upstream.asked())

    containerd.pull(only_mirror, reference)

    assert_holds(containerd, reference, samples.app)
    assert upstream.downloads_since(position) == []


def test_unknown_image_is_not_found(containerd: Containerd, only_mirror: Path, mirror: Mirror) -> None:
    """A pull of an image that the upstream does not have fails, and the mirror itself says 404."""
    with pytest.raises(PullError):
        containerd.pull(only_mirror, "docker.io/library/missing:1", timeout=30)

    assert request("HEAD", f"{mirror.url}/v2/library/missing/manifests/1?ns=docker.io").status == 404


def test_ns_names_the_registry(mirror: Mirror, samples: Samples) -> None:
    """The same path is served for `ns=docker.io` and refused for a registry that is not configured."""
    target = f"{mirror.url}/v2/library/app/manifests/1"

    known = request("GET", f"{target}?ns=docker.io")
    unknown = request("GET", f"{target}?ns=registry.example")

    assert (known.status, known.body) == (200, samples.app.manifest.data)
    assert unknown.status in {403, 404}
