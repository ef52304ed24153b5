"""A bundle of a mirror as real tools take it: docker, containerd, skopeo and podman, and another mirror without a network."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.harness.client import get_manifest
from tests.e2e.harness.containerd import Containerd
from tests.e2e.harness.dockerd import Dockerd
from tests.e2e.harness.images import HOST_ARCHITECTURE, Image
from tests.e2e.harness.listener import Listener
from tests.e2e.harness.mirror import Mirror, start_mirror
from tests.e2e.harness.podman import Podman
from tests.e2e.harness.process import client_environment, run
from tests.e2e.harness.samples import Samples
from tests.e2e.harness.skopeo import Skopeo

pytestmark = pytest.mark.e2e

NAMES = ("app", "oci", "single")


def command(mirror: Mirror, home: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command of the mirror, which has to succeed."""
    done = run([sys.executable, "-m", "mirror", *arguments, "--url", mirror.admin_url], client_environment(home), 60)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    return done


@pytest.fixture(scope="module")
def bundle(mirror: Mirror, directory: Path) -> Path:
    """A bundle of images in Docker's and the OCI's formats, of this machine's platform."""
    file, platform = directory / "bundle.tar", f"linux/{HOST_ARCHITECTURE}"
    command(mirror, directory / "cli", "export", *(f"{name}:1" for name in NAMES), "--platform", platform, "-o", str(file))
    return file


def of_host(samples: Samples, name: str) -> Image:
    """The image that a client of this machine gets."""
    return samples.single if name == "single" else getattr(samples, name).for_host()


def top_digest(samples: Samples, name: str) -> str:
    """The digest that a tag names."""
    return str(getattr(samples, name).manifest.digest)


def test_docker_load(bundle: Path, samples: Samples, directory: Path) -> None:
    """Docker 20.10 loads all images under their tags; the ids are the digests of the configs, as after a pull."""
    with closing(Dockerd(directory / "docker-load", "http://127.0.0.1:1")) as docker:
        done = docker.cli("load", "--input", str(bundle))
        assert done.returncode == 0, done.stderr.decode()
        assert done.stdout.decode().splitlines() == [f"Loaded image: {name}:1" for name in NAMES]
        for name in NAMES:
            assert docker.inspect(f"{name}:1").image_id == of_host(samples, name).config.digest


def test_containerd_import(bundle: Path, samples: Samples, directory: Path) -> None:
    """containerd has the images under their whole names and digests, and nothing under another name."""
    with closing(Containerd(directory / "ctr-import")) as containerd:
        assert containerd.load(bundle) == {f"docker.io/library/{name}:1": top_digest(samples, name) for name in NAMES}
        held = containerd.held_digests()
        assert all(layer.digest in held for name in NAMES for layer in of_host(samples, name).layers)


def copied(skopeo: Skopeo, source: str, target: Path) -> set[str]:
    """The digests of all files of a copy."""
    skopeo.archive(source, f"dir:{target}")
    return {f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in target.iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_skopeo(name: str, bundle: Path, samples: Samples, tmp_path: Path) -> None:
    """skopeo finds an image by its whole name. With OCI media types it has the manifest and layers of the registry.

    An `oci-archive:` of other media types is none for skopeo (containers/image, oci/layout); as a `docker-archive:`, which has no
    manifest, it takes every image.
    """
    skopeo, image = Skopeo(tmp_path / "skopeo"), of_host(samples, name)
    assert image.config.digest in copied(skopeo, f"docker-archive:{bundle}:docker.io/library/{name}:1", tmp_path / "docker")
    if name == "oci":
        files = copied(skopeo, f"oci-archive:{bundle}:docker.io/library/{name}:1", tmp_path / "oci")
        assert {image.manifest.digest, image.config.digest, *(layer.digest for layer in image.layers)} <= files


def test_podman_load(bundle: Path, samples: Samples, directory: Path) -> None:
    """podman loads all images of a bundle."""
    podman = Podman(directory / "podman")
    podman.ask("load", "--input", str(bundle))
    held = {name: one["Id"] for one in json.loads(podman.ask("images", "--format", "json")) for name in one.get("Names") or []}
    assert held == {f"docker.io/library/{name}:1": of_host(samples, name).config.digest.removeprefix("sha256:") for name in NAMES}


@pytest.fixture(scope="module")
def island(directory: Path) -> Iterator[Mirror]:
    """An offline mirror of two workers; nobody has connected to its upstream at the end."""
    with closing(Listener()) as listener:
        started = start_mirror(directory / "island", [listener.url], workers=2, sections={"offline": True})
        with closing(started):
            yield started
        assert listener.connections() == 0


def test_another_mirror(bundle: Path, island: Mirror, samples: Samples, directory: Path) -> None:
    """What another mirror imports is pulled there by the same digests, and exported again with the same bytes."""
    command(island, directory / "cli", "import", str(bundle))
    for name in NAMES:
        assert get_manifest(island.url, f"library/{name}", "1").body == getattr(samples, name).manifest.data
    with closing(Dockerd(directory / "docker-island", island.url)) as docker, closing(Containerd(directory / "ctr")) as ctr:
        by_mirror = ctr.hosts("by-mirror", "docker.io", "http://127.0.0.1:1", island.url)
        for name in NAMES:
            docker.pull(name, "1")
            assert docker.inspect(f"{name}:1").image_id == of_host(samples, name).config.digest
            assert f"{name}@{top_digest(samples, name)}" in docker.inspect(f"{name}:1").repo_digests
            ctr.pull(by_mirror, f"docker.io/library/{name}:1")
    again = directory / "again.tar"
    command(island, directory / "cli", "export", "library/*:1", "-o", str(again))
    assert again.read_bytes() == bundle.read_bytes()
