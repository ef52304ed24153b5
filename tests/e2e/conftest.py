"""What the end-to-end tests share: a directory, an upstream with images, a mirror, and its log on failure."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from mirror.cluster.link import Link
from tests.e2e.harness.cluster import RedisServer, running_link
from tests.e2e.harness.dockerd import Dockerd
from tests.e2e.harness.mirror import Mirror, start_mirror
from tests.e2e.harness.samples import Samples, build_samples
from tests.e2e.harness.upstream import Upstream
from tests.fakehub import FakeHub
from tests.support.waiting import eventually

TEST_SECONDS = 150


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give every end-to-end test a bound that leaves room for the waits that real clients make."""
    for item in items:
        if item.get_closest_marker("e2e") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(TEST_SECONDS))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Add the end of the mirror's log to the report of a test that failed."""
    report = yield
    mirror = getattr(item, "funcargs", {}).get("mirror")
    if report.failed and isinstance(mirror, Mirror):
        report.sections.append(("log of the mirror", mirror.log_tail()))
    return report


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    """A directory for everything that the processes write; short, because of the limit on socket paths."""
    with tempfile.TemporaryDirectory(prefix="mirror-e2e-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def numbers() -> Iterator[int]:
    """Numbers for directory names, so that fixtures made anew never share one."""
    return count()


@pytest.fixture(scope="session")
def samples() -> Samples:
    """The sample images."""
    return build_samples()


@pytest.fixture(scope="module")
def upstream(directory: Path, numbers: Iterator[int], samples: Samples) -> Iterator[Upstream]:
    """A registry that holds the sample images as library/NAME:1."""
    registry = Upstream(directory / f"upstream-{next(numbers)}")
    try:
        for name in ("app", "oci", "single", "large"):
            registry.push(getattr(samples, name), f"library/{name}", "1")
        yield registry
    finally:
        registry.stop()


@pytest.fixture(scope="module")
def mirror(directory: Path, numbers: Iterator[int], upstream: Upstream) -> Iterator[Mirror]:
    """A mirror with an empty store in front of the upstream."""
    started = start_mirror(directory / f"mirror-{next(numbers)}", [upstream.url])
    try:
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def daemon(directory: Path, numbers: Iterator[int], mirror: Mirror) -> Iterator[Dockerd]:
    """One daemon for a file, with the mirror in its `registry-mirrors`."""
    with closing(Dockerd(directory / f"dockerd-{next(numbers)}", mirror.url)) as started:
        yield started


@pytest.fixture
def dockerd(daemon: Dockerd) -> Dockerd:
    """The daemon, holding no image."""
    daemon.remove_all()
    return daemon


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    """A Redis of the test's own, for nodes of a cluster."""
    server = RedisServer(tmp_path)
    yield server
    server.close()


@pytest.fixture
def anonymous(hub: FakeHub) -> FakeHub:
    """The fake Hub without tokens and redirects: each blob is one request."""
    hub.auth, hub.redirect_blobs = "none", False
    return hub


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis for all tests of a file; each has keys of its own."""
    started = RedisServer(tmp_path_factory.mktemp("redis"))
    yield started
    started.close()


@pytest.fixture
async def link(server: RedisServer) -> AsyncIterator[Link]:
    """A link that is up."""
    async with running_link(server.url) as found:
        await eventually(lambda: found.is_up)
        yield found
