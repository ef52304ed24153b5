"""Pulls by a real Docker daemon whose only configuration is `registry-mirrors`."""

import time

import pytest

from tests.e2e.harness.client import get_manifest
from tests.e2e.harness.dockerd import Dockerd, PullError, fetched_layers
from tests.e2e.harness.images import HOST_ARCHITECTURE, Image
from tests.e2e.harness.mirror import Mirror
from tests.e2e.harness.samples import Samples
from tests.e2e.harness.upstream import Upstream

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize("name", ["app", "oci", "single"])
def test_cold_pull_gives_exactly_what_was_pushed(name: str, dockerd: Dockerd, mirror: Mirror, samples: Samples) -> None:
    """A pull through the mirror ends with the pushed image id, repo digest and layers."""
    pushed = getattr(samples, name)
    image = pushed if isinstance(pushed, Image) else pushed.for_host()

    progress = dockerd.pull(name, "1")

    held = dockerd.inspect(f"{name}:1")
    assert held.image_id == image.config.digest
    assert held.repo_digests == [f"{name}@{pushed.manifest.digest}"]
    assert fetched_layers(progress) == len(image.layers) == len(held.diff_ids)


def test_multi_platform_image_gives_the_hosts_platform_only(
    dockerd: Dockerd, mirror: Mirror, upstream: Upstream, samples: Samples
) -> None:
    """The daemon gets its own platform, and the mirror downloads no layer of the other one."""
    dockerd.pull("app", "1")

    assert dockerd.inspect("app:1").architecture == HOST_ARCHITECTURE
    foreign = [image for image in samples.app.images if image.architecture != HOST_ARCHITECTURE]
    foreign_digests = {layer.digest for image in foreign for layer in image.layers}
    assert foreign_digests.isdisjoint(entry.reference for entry in upstream.asked())


def test_warm_pull_downloads_nothing_from_the_upstream(
    dockerd: Dockerd, mirror: Mirror, upstream: Upstream, samples: Samples
) -> None:
    """Once pulled, an image that the daemon has lost is served without one GET upstream."""
    dockerd.pull("app", "1")
    dockerd.remove_all()
    position = len(upstream.asked())

    progress = dockerd.pull("app", "1")

    assert fetched_layers(progress) == len(samples.app.for_host().layers)
    assert upstream.downloads_since(position) == []


def test_pull_by_digest(dockerd: Dockerd, mirror: Mirror, samples: Samples) -> None:
    """A pull by the digest of an index ends with that repo digest and the platform's image id."""
    digest = samples.oci.manifest.digest

    dockerd.pull("oci", digest)

    held = dockerd.inspect(f"oci@{digest}")
    assert held.image_id == samples.oci.for_host().config.digest
    assert held.repo_digests == [f"oci@{digest}"]


def test_unknown_image_fails_fast(dockerd: Dockerd, mirror: Mirror) -> None:
    """An image that the upstream does not have is a quick 404 and a failed pull."""
    began = time.monotonic()

    with pytest.raises(PullError):
        dockerd.pull("missing", "1")

    assert time.monotonic() - began < 30
    answer = get_manifest(mirror.url, "library/missing", "1")
    assert answer.status == 404
    assert b"_UNKNOWN" in answer.body


def test_search_by_the_docker_command(dockerd: Dockerd, mirror: Mirror, samples: Samples) -> None:
    """`docker search HOST:PORT/TERM` finds what is held, by names that can be pulled from that host."""
    dockerd.pull("app", "1")
    dockerd.pull("single", "1")

    found = dockerd.cli("search", "--format", "{{.Name}}: {{.Description}}", f"127.0.0.1:{mirror.port}/app")

    assert found.stdout.decode().splitlines() == ["library/app: 1 tag held here"]
    name, _, _ = found.stdout.decode().partition(":")
    dockerd.pull(f"127.0.0.1:{mirror.port}/{name}", "1")
