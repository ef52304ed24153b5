"""One mirror of three registries that hold repositories of the same names: each client gets what its registry has."""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.e2e.harness.client import Answer, get_manifest, request
from tests.e2e.harness.containerd import Containerd, PullError
from tests.e2e.harness.dockerd import Dockerd, fetched_layers
from tests.e2e.harness.images import (
    ARCHITECTURES,
    DOCKER,
    OCI,
    Content,
    Format,
    Index,
    build_image,
    build_index,
    layer_of_noise,
)
from tests.e2e.harness.listener import Listener
from tests.e2e.harness.mirror import Mirror, start_mirror
from tests.e2e.harness.skopeo import Skopeo
from tests.e2e.harness.upstream import Upstream
from tests.support.waiting import wait_until

pytestmark = pytest.mark.e2e

HUB, GITHUB, QUAY = REGISTRIES = ("docker.io", "ghcr.io", "quay.io")
REPOSITORIES = ("library/app", "team/app")
UNREACHABLE = "http://127.0.0.1:1"
_LAYER_BYTES = 512 * 1024

# What each registry has, by registry and repository; each tag is `1`.
Shelf = Mapping[tuple[str, str], Index]


@pytest.fixture(scope="module")
def content() -> Shelf:
    """An image for each repository of each registry: two platforms, and no digest in common with any other."""
    names = [(registry, repository) for registry in REGISTRIES for repository in REPOSITORIES]
    return {name: _index(DOCKER if name[1] == REPOSITORIES[0] else OCI, 100 * number) for number, name in enumerate(names, 1)}


@pytest.fixture(scope="module")
def upstreams(directory: Path, numbers: Iterator[int], content: Shelf) -> Iterator[Mapping[str, Upstream]]:
    """A registry process for each registry's name."""
    with ExitStack() as stack:
        started = {}
        for registry in REGISTRIES:
            started[registry] = Upstream(directory / f"upstream-{next(numbers)}")
            stack.callback(started[registry].stop)
            for repository in REPOSITORIES:
                started[registry].push(content[registry, repository], repository, "1")
        yield started


@pytest.fixture(scope="module")
def mirror(directory: Path, numbers: Iterator[int], upstreams: Mapping[str, Upstream]) -> Iterator[Mirror]:
    """One mirror of all three."""
    registries = {name: {"upstreams": [upstream.url]} for name, upstream in upstreams.items()}
    started = start_mirror(directory / f"mirror-{next(numbers)}", [], sections={"registries": registries})
    try:
        yield started
    finally:
        started.close()


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
def skopeo(directory: Path, numbers: Iterator[int]) -> Skopeo:
    """skopeo without mirrors of its own."""
    return Skopeo(directory / f"skopeo-{next(numbers)}")


@pytest.fixture
def listener() -> Iterator[Listener]:
    """A place where nobody may come by."""
    with closing(Listener()) as listening:
        yield listening


@pytest.mark.parametrize("registry", [GITHUB, QUAY])
@pytest.mark.parametrize("repository", REPOSITORIES)
def test_containerd_by_ns(
    registry: str, repository: str, containerd: Containerd, numbers: Iterator[int], mirror: Mirror, content: Shelf
) -> None:
    """containerd names the registry by `ns=`, and gets its manifests, config and layers, and nobody else's."""
    hosts = containerd.hosts(f"hosts-{next(numbers)}", registry, UNREACHABLE, mirror.url)
    index = content[registry, repository]

    containerd.pull(hosts, f"{registry}/{repository}:1")

    image = index.for_host()
    assert containerd.image_digest(f"{registry}/{repository}:1") == index.manifest.digest
    held = containerd.held_digests()
    assert {part.digest for part in (index.manifest, image.manifest, *image.blobs)} <= held
    assert held.isdisjoint(digests(content, others=(registry, repository)))


@pytest.mark.parametrize("repository", REPOSITORIES)
def test_docker_as_root_mirror(repository: str, dockerd: Dockerd, mirror: Mirror, content: Shelf) -> None:
    """A daemon whose mirror this is says nothing of a registry, and gets what Docker Hub has."""
    index = content[HUB, repository]
    image = index.for_host()
    name = repository.removeprefix("library/")

    progress = dockerd.pull(name, "1")

    held = dockerd.inspect(f"{name}:1")
    assert held.repo_digests == [f"{name}@{index.manifest.digest}"]
    assert held.image_id == image.config.digest
    assert held.diff_ids == json.loads(image.config.data)["rootfs"]["diff_ids"]
    assert fetched_layers(progress) == len(image.layers)


@pytest.mark.parametrize("registry", REGISTRIES)
@pytest.mark.parametrize("repository", REPOSITORIES)
def test_skopeo_by_path(registry: str, repository: str, skopeo: Skopeo, mirror: Mirror, content: Shelf) -> None:
    """skopeo names the registry in the path, and copies every platform of its image, byte for byte."""
    source = f"127.0.0.1:{mirror.port}/{registry}/{repository}:1"

    copied = skopeo.copy(source, "--all")

    assert skopeo.raw_manifest(source) == content[registry, repository].manifest.data
    # What is beside is the file that names the version of skopeo's format.
    copied.pop("version")
    assert set(copied.values()) == {part.digest.removeprefix("sha256:") for part in parts(content[registry, repository])}


def test_what_is_held_does_not_mix(skopeo: Skopeo, mirror: Mirror, upstreams: Mapping[str, Upstream], content: Shelf) -> None:
    """With all upstreams gone, each name still stands for its own registry's image, and each asked only for what it has."""
    ways = [(registry, repository) for registry in REGISTRIES for repository in REPOSITORIES]
    first = {way: skopeo.copy(f"127.0.0.1:{mirror.port}/{'/'.join(way)}:1", "--all") for way in ways}
    with ExitStack() as stack:
        for upstream in upstreams.values():
            stack.enter_context(upstream.down())
        for registry, repository in ways:
            way, index = (registry, repository), content[registry, repository]
            assert skopeo.copy(f"127.0.0.1:{mirror.port}/{'/'.join(way)}:1", "--all") == first[way]
            for answer in (
                get_manifest(mirror.url, f"{registry}/{repository}", "1"),
                get_manifest(f"{mirror.url}/{registry}", repository, "1"),
                request("GET", f"{mirror.url}/v2/{repository}/manifests/1?ns={registry}"),
            ):
                assert (answer.status, answer.body) == (200, index.manifest.data)
    for registry in REGISTRIES:
        own = {part.digest for repository in REPOSITORIES for part in parts(content[registry, repository])}
        asked = {entry.reference for entry in upstreams[registry].asked() if entry.agent.startswith("registry-mirror/")}
        assert asked - {"1"} <= own


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_fourth_registry_is_refused_without_a_connection(
    host: str,
    directory: Path,
    numbers: Iterator[int],
    containerd: Containerd,
    mirror: Mirror,
    upstreams: Mapping[str, Upstream],
    listener: Listener,
) -> None:
    """A registry that is not configured is refused at once, and nobody hears of it: neither it nor the upstreams.

    It has an address at which connections are counted; that they would be is shown by a mirror in which it is configured.
    """
    fourth = f"{host}:{listener.port}"
    hosts = containerd.hosts(f"hosts-{next(numbers)}", fourth, UNREACHABLE, mirror.url)
    before = {name: len(upstream.asked()) for name, upstream in upstreams.items()}

    with pytest.raises(PullError):
        containerd.pull(hosts, f"{fourth}/library/app:1")
    assert mirror.logged(f"registry '{fourth}' is not mirrored here")
    for name, query in (("/v2", f"?ns={fourth}"), (f"/v2/{fourth}", ""), (f"/{fourth}/v2", "")):
        for rest in ("manifests/1", f"blobs/sha256:{'0' * 64}", "tags/list"):
            answer = request("GET", f"{mirror.url}{name}/library/app/{rest}{query}")
            assert answer.status in {400, 403, 404}
            assert "WWW-Authenticate" not in answer.headers

    assert listener.connections() == 0
    assert {name: len(upstream.asked()) for name, upstream in upstreams.items()} == before
    assert _ask_where_configured(directory / f"mirror-{next(numbers)}", fourth, listener).status == 503
    assert listener.connections() > 0


def _ask_where_configured(directory: Path, fourth: str, listener: Listener) -> Answer:
    """Ask the same of a mirror that has the fourth registry."""
    registries = {HUB: {"upstreams": [UNREACHABLE]}, fourth: {"upstreams": [listener.url]}}
    other = start_mirror(directory, [], sections={"registries": registries})
    try:
        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(request, "GET", f"{other.url}/v2/library/app/manifests/1?ns={fourth}")
            # Counting is what ends the connections.
            wait_until(lambda: listener.connections() > 0 and asking.done(), "an answer about the fourth registry", 30)
            return asking.result()
    finally:
        other.close()


def parts(index: Index) -> list[Content]:
    """Everything that belongs to an index, itself included."""
    return [index.manifest, *(part for image in index.images for part in (image.manifest, *image.blobs))]


def digests(content: Shelf, others: tuple[str, str]) -> set[str]:
    """The digests of everything but one image."""
    return {part.digest for name, index in content.items() if name != others for part in parts(index)}


def _index(family: Format, seed: int) -> Index:
    """Two platforms with two layers each."""
    images = [
        build_image(family, architecture, [layer_of_noise(_LAYER_BYTES, seed=seed + 10 * number + layer) for layer in range(2)])
        for number, architecture in enumerate(ARCHITECTURES)
    ]
    return build_index(family, images)
