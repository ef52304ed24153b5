"""Real clients of a tag that moves to a young image: they keep the old one until an operator releases the new one."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness.dockerd import Dockerd
from tests.e2e.harness.images import DOCKER, HOST_ARCHITECTURE, build_image, build_index, layer_of_noise
from tests.e2e.harness.mirror import Mirror, start_mirror
from tests.e2e.harness.process import client_environment, run
from tests.e2e.harness.skopeo import Skopeo
from tests.e2e.harness.upstream import Upstream

pytestmark = pytest.mark.e2e

REPOSITORY = "library/cooling"


@pytest.fixture(scope="module")
def mirror(directory: Path, numbers: Iterator[int], upstream: Upstream) -> Iterator[Mirror]:
    """A mirror of two workers that checks each pull, and holds moves back for three days."""
    rule = {"match": REPOSITORY, "cooldown": "3d"}
    sections = {"registries": {"docker.io": {"upstreams": [upstream.url], "tags": [rule]}}, "sync": {"interval": "0"}}
    started = start_mirror(directory / f"mirror-{next(numbers)}", [], sections=sections, workers=2, tag_ttl="0s")
    try:
        yield started
    finally:
        started.close()


def command(directory: Path, mirror: Mirror, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """Run one of the mirror's own commands."""
    environment = {**client_environment(directory), "PYTHONPATH": str(Path.cwd())}
    return run([sys.executable, "-m", "mirror", *arguments, "--url", mirror.admin_url], environment, 60)


def test_clients_keep_the_old_image_until_the_release(
    directory: Path, numbers: Iterator[int], mirror: Mirror, dockerd: Dockerd, upstream: Upstream
) -> None:
    """dockerd and skopeo, also after a crash of the mirror and an order to sync; the log notes the release."""
    workplace = directory / f"cooling-{next(numbers)}"
    skopeo = Skopeo(workplace, mirror.port)
    old, new = (build_index(DOCKER, [build_image(DOCKER, HOST_ARCHITECTURE, [layer_of_noise(1 << 20, n)])]) for n in (1, 2))

    def pulled() -> tuple[str, str]:
        """The image that dockerd gets, and the manifest that skopeo gets."""
        dockerd.remove_all()
        dockerd.pull("cooling", "1")
        manifest = skopeo.raw_manifest(f"docker.io/{REPOSITORY}:1")
        return dockerd.inspect("cooling:1").image_id, f"sha256:{hashlib.sha256(manifest).hexdigest()}"

    kept, followed = ((image.for_host().config.digest, image.manifest.digest) for image in (old, new))
    upstream.push(old, REPOSITORY, "1")
    assert pulled() == kept
    upstream.push(new, REPOSITORY, "1")
    assert pulled() == kept
    mirror.crash()
    mirror.start()
    assert pulled() == kept
    done = command(workplace, mirror, "sync", "cooling:1")
    assert done.returncode == 0, done.stderr.decode()
    assert b"1 held back" in done.stdout
    assert mirror.metric('tags_held_back{registry="docker.io"}') == 1
    assert new.manifest.digest.removeprefix("sha256:")[:12].encode() in command(workplace, mirror, "status").stdout
    assert pulled() == kept

    done = command(workplace, mirror, "release", "cooling:1")

    assert done.returncode == 0, done.stderr.decode()
    assert f"docker.io/{REPOSITORY}:1: released to {new.manifest.digest}".encode() in done.stdout
    assert pulled() == followed
    assert mirror.metric('tags_held_back{registry="docker.io"}') == 0
    assert len(mirror.logged("release")) == 1
    mirror.check_log()
