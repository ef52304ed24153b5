"""Real clients of a mirror that keeps itself in sync: what has moved is there before they ask, and what was warmed is, too."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness.dockerd import Dockerd, fetched_layers
from tests.e2e.harness.images import DOCKER, HOST_ARCHITECTURE, Image, build_image, build_index, layer_of_noise
from tests.e2e.harness.mirror import Mirror, start_mirror
from tests.e2e.harness.process import client_environment, run
from tests.e2e.harness.samples import Samples
from tests.e2e.harness.skopeo import Skopeo
from tests.e2e.harness.upstream import Upstream
from tests.support.waiting import wait_until

pytestmark = pytest.mark.e2e

INTERVAL = 3.0
# For what the run itself takes, on a busy machine.
SLACK = 40.0


@pytest.fixture(scope="module")
def mirror(directory: Path, numbers: Iterator[int], upstream: Upstream) -> Iterator[Mirror]:
    """A mirror that looks every few seconds."""
    sections = {"sync": {"interval": f"{INTERVAL:g}s"}}
    started = start_mirror(directory / f"mirror-{next(numbers)}", [upstream.url], sections=sections, workers=2)
    try:
        yield started
    finally:
        started.close()


def command(directory: Path, mirror: Mirror, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run one of the mirror's own commands."""
    environment = {**client_environment(directory), "PYTHONPATH": str(Path.cwd())}
    return run([sys.executable, "-m", "mirror", *arguments, "--url", mirror.admin_url], environment, 60)


def holds(mirror: Mirror, digest: str) -> bool:
    """Whether a blob lies in the mirror's store."""
    algorithm, _, encoded = digest.partition(":")
    return (mirror.store / "blobs" / algorithm / encoded[:2] / encoded).exists()


def version(number: int) -> Image:
    """Another version of an image: it shares a layer with each other one, and has one of its own."""
    return build_image(DOCKER, HOST_ARCHITECTURE, [layer_of_noise(4 << 20, 1000), layer_of_noise(1 << 20, 1000 + number)])


def test_moved_tag_is_there_before_it_is_pulled(mirror: Mirror, dockerd: Dockerd, upstream: Upstream) -> None:
    """A tag moves upstream: within one interval the new image is there, by its new layer alone; its pull asks for no content."""
    old, new = (build_index(DOCKER, [version(number)]) for number in (1, 2))
    upstream.push(old, "library/moving", "1")
    dockerd.pull("moving", "1")
    assert dockerd.inspect("moving:1").image_id == old.for_host().config.digest
    position = len(upstream.asked())

    upstream.push(new, "library/moving", "1")
    moved = time.monotonic()
    wanted = [new.manifest.digest, *(blob.digest for blob in new.for_host().blobs)]
    wait_until(lambda: all(holds(mirror, digest) for digest in wanted), "the new image", 60)
    assert time.monotonic() - moved < INTERVAL + SLACK
    fetched = [entry.reference for entry in upstream.downloads_since(position) if entry.kind == "blobs"]
    assert sorted(fetched) == sorted({new.for_host().layers[1].digest, new.for_host().config.digest})
    assert mirror.logged("moved=1")

    dockerd.remove_all()
    position = len(upstream.asked())
    progress = dockerd.pull("moving", "1")

    assert dockerd.inspect("moving:1").image_id == new.for_host().config.digest
    assert fetched_layers(progress) == 2
    assert upstream.downloads_since(position) == []


def test_warmed_image_is_pulled_without_upstream(
    directory: Path, numbers: Iterator[int], mirror: Mirror, dockerd: Dockerd, upstream: Upstream, samples: Samples
) -> None:
    """What `warm` has brought is pulled by dockerd and skopeo while upstream does not run, as it was pushed."""
    workplace = directory / f"warm-{next(numbers)}"
    expected = Skopeo(workplace / "direct").copy(f"127.0.0.1:{upstream.port}/library/oci:1")

    done = command(workplace, mirror, "warm", "oci:1", "single:1", "--platform", f"linux/{HOST_ARCHITECTURE}")

    assert done.returncode == 0, done.stderr.decode()
    assert b"docker.io/library/oci:1: new, " in done.stdout
    with upstream.down():
        assert Skopeo(workplace / "through", mirror.port).copy("docker.io/library/oci:1") == expected
        dockerd.pull("single", "1")
        assert dockerd.inspect("single:1").image_id == samples.single.config.digest
        failed = command(workplace, mirror, "warm", "app:1")
        assert failed.returncode == 1
        assert b"docker.io/library/app:1: " in failed.stderr
    wait_until(mirror.sees_upstreams, "the upstream", 60)
    assert command(workplace, mirror, "warm", "app:1").returncode == 0
