"""Bundles that real tools write, imported by the command into a mirror without a network, and pulled by real clients.

In the place of the upstream is a listener that counts connections.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.e2e.harness.client import get_manifest
from tests.e2e.harness.containerd import Containerd
from tests.e2e.harness.dockerd import Dockerd
from tests.e2e.harness.images import Image
from tests.e2e.harness.listener import Listener
from tests.e2e.harness.mirror import Mirror, start_mirror
from tests.e2e.harness.podman import Podman
from tests.e2e.harness.process import client_environment, run
from tests.e2e.harness.samples import Samples
from tests.e2e.harness.skopeo import Skopeo
from tests.e2e.harness.upstream import Upstream

pytestmark = pytest.mark.e2e

NOWHERE = "http://127.0.0.1:1"


@pytest.fixture(scope="module")
def mirror(directory: Path) -> Iterator[Mirror]:
    """An offline mirror of two workers; nobody has connected to its upstream at the end."""
    with closing(Listener()) as listener:
        started = start_mirror(directory / "offline", [listener.url], workers=2, sections={"offline": True})
        with closing(started):
            yield started
        assert listener.connections() == 0


@pytest.fixture(scope="module")
def clients(directory: Path, mirror: Mirror, upstream: Upstream) -> Iterator[SimpleNamespace]:
    """All clients, with the mirror as the only way to docker.io; they may ask the upstream by its address."""
    base = directory / "import-clients"
    with closing(Dockerd(base / "docker", mirror.url)) as docker, closing(Containerd(base / "containerd")) as containerd:
        yield SimpleNamespace(
            docker=docker,
            containerd=containerd,
            by_mirror=containerd.hosts("by-mirror", "docker.io", NOWHERE, mirror.url),
            by_upstream=containerd.hosts("by-upstream", "docker.io", NOWHERE, upstream.url),
            skopeo=Skopeo(base / "skopeo", mirror.port),
            podman=Podman(base / "podman"),
        )


def import_bundle(mirror: Mirror, file: Path, *options: str) -> list[dict[str, str]]:
    """Import by the command; returns the images."""
    command = [sys.executable, "-m", "mirror", "import", "--json", "--url", mirror.admin_url, *options, str(file)]
    done = run(command, client_environment(file.parent / "cli"), 60)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode()
    images: list[dict[str, str]] = json.loads(done.stdout)[0]["images"]
    return images


def pulled_by_all(clients: SimpleNamespace, name: str, tag: str, image: Image) -> None:
    """dockerd, containerd and skopeo pull a tag from the mirror, and get the content of an image."""
    clients.docker.remove_all()
    clients.docker.pull(name, tag)
    assert clients.docker.inspect(f"{name}:{tag}").image_id == image.config.digest
    clients.containerd.remove_all()
    clients.containerd.pull(clients.by_mirror, f"docker.io/library/{name}:{tag}")
    assert image.config.digest in clients.containerd.held_digests()
    copied = clients.skopeo.copy(f"docker.io/library/{name}:{tag}")
    assert image.config.digest.removeprefix("sha256:") in copied


def test_docker_save(clients: SimpleNamespace, mirror: Mirror, upstream: Upstream, samples: Samples, tmp_path: Path) -> None:
    """`docker save` of Docker 20.10: the image id and the layers are those of the registry; the manifest is made."""
    source, file, image = f"127.0.0.1:{upstream.port}/library/app", tmp_path / "saved.tar", samples.app.for_host()
    clients.docker.pull(source, "1")
    for tag in ("app:saved", "app:again"):
        assert clients.docker.cli("tag", f"{source}:1", tag).returncode == 0
    assert clients.docker.cli("save", "--output", str(file), "app:saved", "app:again").returncode == 0

    imported = import_bundle(mirror, file)

    assert {one["name"] for one in imported} == {"docker.io/library/app:saved", "docker.io/library/app:again"}
    assert all("made one" in one["note"] for one in imported)
    pulled_by_all(clients, "app", "saved", image)


def test_oci_archive_of_skopeo(
    clients: SimpleNamespace, mirror: Mirror, upstream: Upstream, samples: Samples, tmp_path: Path
) -> None:
    """All platforms, byte for byte; the name is what the user of skopeo typed."""
    source, file = f"127.0.0.1:{upstream.port}/library/oci", tmp_path / "bundle.tar"
    clients.skopeo.archive(f"docker://{source}:1", f"oci-archive:{file}:docker.io/library/oci:skopeo", "--all")

    (imported,) = import_bundle(mirror, file)

    assert (imported["name"], imported["digest"]) == ("docker.io/library/oci:skopeo", samples.oci.manifest.digest)
    pulled_by_all(clients, "oci", "skopeo", samples.oci.for_host())
    assert clients.skopeo.copy("docker.io/library/oci:skopeo", "--all") == clients.skopeo.copy(f"{source}:1", "--all")


def test_docker_archive_of_skopeo(
    clients: SimpleNamespace, mirror: Mirror, upstream: Upstream, samples: Samples, tmp_path: Path
) -> None:
    source, file = f"docker://127.0.0.1:{upstream.port}/library/single:1", tmp_path / "bundle.tar"
    clients.skopeo.archive(source, f"docker-archive:{file}")

    (imported,) = import_bundle(mirror, file, "--as", "single:archive")

    assert "made one" in imported["note"]
    pulled_by_all(clients, "single", "archive", samples.single)


def test_export_of_containerd(
    clients: SimpleNamespace, mirror: Mirror, upstream: Upstream, samples: Samples, tmp_path: Path
) -> None:
    """`ctr images export` of one platform: the index keeps its digest, and the other platform is left out."""
    file, reference = tmp_path / "bundle.tar", "docker.io/library/app:1"
    clients.containerd.pull(clients.by_upstream, reference)
    clients.containerd.export(file, reference)

    (imported,) = import_bundle(mirror, file)

    assert (imported["name"], imported["digest"]) == (reference, samples.app.manifest.digest)
    assert len(imported["left_out"]) == 1
    pulled_by_all(clients, "app", "1", samples.app.for_host())
    assert get_manifest(mirror.url, "library/app", "1").body == samples.app.manifest.data


@pytest.mark.parametrize(("form", "name"), [("oci-archive", "oci"), ("docker-archive", "single")])
def test_save_of_podman(
    form: str, name: str, clients: SimpleNamespace, mirror: Mirror, upstream: Upstream, samples: Samples, tmp_path: Path
) -> None:
    """In both of its formats. Its OCI archives have no name."""
    source, file = f"127.0.0.1:{upstream.port}/library/{name}:1", tmp_path / "bundle.tar"
    clients.podman.ask("pull", "--tls-verify=false", source)
    clients.podman.ask("tag", source, f"docker.io/library/{name}:podman")
    clients.podman.ask("save", "--format", form, "--output", str(file), f"docker.io/library/{name}:podman")

    imported = import_bundle(mirror, file, *(["--as", f"{name}:podman"] if form == "oci-archive" else []))

    assert imported[0]["name"] == f"docker.io/library/{name}:podman"
    pulled_by_all(clients, name, "podman", samples.single if name == "single" else samples.oci.for_host())
