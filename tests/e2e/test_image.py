"""The container image: built from nothing but a base system and constraints.txt, and run as deploy/ runs it."""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from tests.e2e.harness.client import answers, get_manifest
from tests.e2e.harness.dockerd import Dockerd
from tests.e2e.harness.image_build import ImageBuilder
from tests.e2e.harness.samples import Samples
from tests.e2e.harness.upstream import Upstream
from tests.support.ports import free_port
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(1200)]

NAME = "registry-mirror"
UNPRIVILEGED = ["--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges"]


@pytest.fixture(scope="module")
def builder(directory: Path) -> ImageBuilder:
    """A storage with the image in it."""
    builder = ImageBuilder(directory / "images")
    builder.build(NAME)
    return builder


@pytest.fixture(scope="module")
def engine(directory: Path, builder: ImageBuilder) -> Iterator[Dockerd]:
    """A daemon that holds the image and runs it."""
    archive = directory / "image.tar"
    builder.save(NAME, archive)
    with closing(Dockerd(directory / "engine")) as engine:
        loaded = engine.cli("load", "--quiet", "--input", str(archive))
        assert loaded.returncode == 0, loaded.stderr
        archive.unlink()
        yield engine


def said(engine: Dockerd, *arguments: str) -> str:
    """What a `docker` command prints; it has to succeed."""
    done = engine.cli(*arguments)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode().strip()


def test_pull_through_the_container(engine: Dockerd, directory: Path, upstream: Upstream, samples: Samples) -> None:
    """Unprivileged and on a read-only root, it becomes healthy, a real client pulls through it, and `docker stop` drains it."""
    port, admin_port = free_port(), free_port()
    configuration = directory / "in-container.yaml"
    configuration.write_text(
        yaml.safe_dump(
            {
                "listen": f"127.0.0.1:{port}",
                "admin": {"listen": f"127.0.0.1:{admin_port}"},
                "storage": {"path": "/var/cache/registry-mirror", "min_free": "0"},
                "registries": {"docker.io": {"upstreams": [upstream.url]}},
            }
        )
    )
    mount = f"{configuration}:/etc/registry-mirror/mirror.yaml:ro"
    container = said(engine, "run", "--detach", "--network=host", *UNPRIVILEGED, "--volume", mount, NAME)
    wait_until(lambda: answers(f"http://127.0.0.1:{admin_port}/healthz"), "the container answers", 60)

    assert said(engine, "exec", container, "id", "--user") == "10001"
    assert engine.cli("exec", container, "touch", "/opt/registry-mirror/x").returncode != 0
    with closing(Dockerd(directory / "client", f"http://127.0.0.1:{port}")) as client:
        client.pull("single", "1")
        assert client.inspect("single:1").image_id == samples.single.config.digest
    position = len(upstream.asked())
    assert get_manifest(f"http://127.0.0.1:{port}", "library/single", "1").headers["X-Cache"] == "HIT"
    assert upstream.downloads_since(position) == []

    said(engine, "stop", container)
    (state,) = json.loads(said(engine, "inspect", container))
    assert state["State"]["ExitCode"] == 0
    assert "Traceback" not in engine.cli("logs", container).stderr.decode()


def test_as_it_comes(engine: Dockerd) -> None:
    """Without any configuration it serves at the port that it exposes, and its own health check finds it healthy."""
    container = said(engine, "run", "--detach", "--network=none", *UNPRIVILEGED, "--health-interval=1s", NAME)
    status = ["inspect", "--format={{.State.Health.Status}}", container]
    wait_until(lambda: said(engine, *status) == "healthy", "the container is healthy", 60)
    ask = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:5000/v2/', timeout=5).status)"
    assert said(engine, "exec", container, "python3", "-c", ask) == "200"
    said(engine, "rm", "--force", container)


def test_only_the_command_line_is_there(engine: Dockerd) -> None:
    """The image has what the mirror needs at run time, and nothing that the tests or the build need."""
    listed = said(
        engine, "run", "--rm", "--network=none", "--entrypoint=ls", NAME, "/opt/registry-mirror/lib/python3.11/site-packages"
    )
    assert {"mirror", "aiohttp"} <= set(listed.split())
    assert not {"pytest", "mypy", "hypothesis", "pip", "setuptools"} & set(listed.split())
    assert said(engine, "run", "--rm", "--network=none", NAME, "--version").startswith("registry-mirror ")


def test_two_builds_are_the_same(builder: ImageBuilder) -> None:
    """Every file of the mirror and of what it imports."""
    builder.build("again")
    first, second = (builder.files(name, "/opt/registry-mirror") for name in (NAME, "again"))
    assert len(first) > 1000
    assert {name for name in first | second if first.get(name) != second.get(name)} == set()
