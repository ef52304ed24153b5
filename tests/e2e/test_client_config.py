"""What `client-config` writes is what the real clients read."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.harness.containerd import Containerd
from tests.e2e.harness.dockerd import Dockerd
from tests.e2e.harness.mirror import Mirror, start_mirror
from tests.e2e.harness.samples import Samples
from tests.e2e.harness.skopeo import Skopeo
from tests.e2e.harness.upstream import Upstream

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
GITHUB = "ghcr.io"


@pytest.fixture(scope="module")
def mirror(directory: Path, numbers: Iterator[int], upstream: Upstream) -> Iterator[Mirror]:
    """A mirror of two registries, both with the sample images; the second one at a path of the same upstream's host."""
    registries = {"docker.io": {"upstreams": [upstream.url]}, GITHUB: {"upstreams": [upstream.url]}}
    started = start_mirror(directory / f"mirror-{next(numbers)}", [], sections={"registries": registries})
    try:
        yield started
    finally:
        started.close()


@pytest.fixture
def root(directory: Path, numbers: Iterator[int]) -> Path:
    """The root of a client's file system."""
    return directory / f"root-{next(numbers)}"


def write(client: str, mirror: Mirror, root: Path) -> None:
    """Run the command as an operator does."""
    argv = [sys.executable, "-m", "mirror", "client-config", client, "--url", mirror.url, "--write", "--root", str(root)]
    subprocess.run([*argv, "--config", str(mirror.config)], cwd=ROOT, check=True, timeout=60, stdout=subprocess.DEVNULL)


def test_docker(root: Path, directory: Path, numbers: Iterator[int], mirror: Mirror, samples: Samples) -> None:
    """A daemon with a merged daemon.json pulls through the mirror, and keeps its other settings."""
    file = root / "etc/docker/daemon.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps({"labels": ["rack=7"], "registry-mirrors": ["http://127.0.0.1:1"]}))

    write("docker", mirror, root)

    with closing(Dockerd(directory / f"dockerd-{next(numbers)}", config=file)) as dockerd:
        shown = dockerd.cli("info", "--format", "{{json .RegistryConfig.Mirrors}} {{json .Labels}}").stdout.decode()
        assert shown.split() == [f'["{mirror.url}/","http://127.0.0.1:1/"]', '["rack=7"]']
        dockerd.pull("app", "1")
        assert dockerd.inspect("app:1").repo_digests == [f"app@{samples.app.manifest.digest}"]


@pytest.mark.parametrize("registry", ["docker.io", GITHUB])
def test_containerd(registry: str, root: Path, directory: Path, numbers: Iterator[int], mirror: Mirror, samples: Samples) -> None:
    """The hosts directory leads the pulls of every registry through the mirror."""
    write("containerd", mirror, root)

    with closing(Containerd(directory / f"containerd-{next(numbers)}")) as containerd:
        containerd.pull(root / "etc/containerd/certs.d", f"{registry}/library/app:1")
        assert containerd.image_digest(f"{registry}/library/app:1") == samples.app.manifest.digest


@pytest.mark.parametrize("registry", ["docker.io", GITHUB])
def test_containers_image(
    registry: str, root: Path, directory: Path, numbers: Iterator[int], mirror: Mirror, samples: Samples
) -> None:
    """skopeo, and so podman and CRI-O, find the mirror of every registry."""
    write("podman", mirror, root)
    (file,) = (root / "etc/containers/registries.conf.d").iterdir()

    skopeo = Skopeo(directory / f"skopeo-{next(numbers)}", configuration=file)

    assert skopeo.raw_manifest(f"{registry}/library/app:1") == samples.app.manifest.data
