"""No space is not an error: a store on a small disk that becomes full, or read-only, in the middle of a pull."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.e2e.harness.client import Answer, request, stream
from tests.e2e.harness.dockerd import Dockerd
from tests.e2e.harness.images import Content
from tests.e2e.harness.mirror import Mirror, start_mirror
from tests.e2e.harness.mounts import break_disk, fill_up, loop_disk, memory_disk
from tests.e2e.harness.samples import Samples
from tests.e2e.harness.throttle import ONE_CONNECTION, Throttle
from tests.e2e.harness.upstream import Upstream
from tests.e2e.test_killed_mirror import follow_to_quarter, read_exactly, sha256
from tests.support.ports import free_port
from tests.support.waiting import wait_until

pytestmark = pytest.mark.e2e

BYTES_PER_SECOND = 12 * 1024 * 1024
MEGABYTE = 1024 * 1024
BYPASSED = 'downloads_total{result="bypassed"}'
COMMITTED = 'downloads_total{result="committed"}'


@pytest.fixture(scope="module")
def throttle(directory: Path, numbers: Iterator[int], upstream: Upstream) -> Iterator[Throttle]:
    """The slow line to the upstream."""
    with closing(Throttle(directory / f"throttle-{next(numbers)}", upstream.url, BYTES_PER_SECOND)) as started:
        yield started


@pytest.fixture(scope="module")
def port() -> int:
    """Where each mirror of this file listens in turn, so that one daemon serves all tests."""
    return free_port()


@pytest.fixture(scope="module")
def daemon(directory: Path, numbers: Iterator[int], port: int) -> Iterator[Dockerd]:
    """One daemon for this file."""
    with closing(Dockerd(directory / f"dockerd-{next(numbers)}", f"http://127.0.0.1:{port}")) as started:
        yield started


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """What is entered here is left at the end of the test."""
    with ExitStack() as entered:
        yield entered


@pytest.fixture
def disk(directory: Path, numbers: Iterator[int], stack: ExitStack) -> Path:
    """A disk that has room for the large image."""
    return stack.enter_context(memory_disk(directory / f"disk-{next(numbers)}", 100 * MEGABYTE))


def blob(mirror: Mirror, repository: str, content: Content) -> Answer:
    """GET of a blob, which has to be right."""
    answer = request("GET", f"{mirror.url}/v2/library/{repository}/blobs/{content.digest}")
    assert answer.status == 200
    assert sha256(answer.body) == content.digest
    return answer


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.full), 2])
def test_disk_full_in_the_middle_of_a_pull(
    workers: int,
    directory: Path,
    numbers: Iterator[int],
    throttle: Throttle,
    port: int,
    stack: ExitStack,
    disk: Path,
    dockerd: Dockerd,
    samples: Samples,
) -> None:
    """A disk filled to its last byte while dockerd pulls: it succeeds, one log line a process; with room the next is cached."""
    layer = samples.large.layers[0]
    mirror = start_mirror(
        directory / f"mirror-{next(numbers)}",
        [throttle.url],
        port=port,
        workers=workers,
        storage={"path": str(disk / "store"), "min_free": "0"},
        sections=ONE_CONNECTION,
    )
    stack.enter_context(closing(mirror))
    with dockerd.pulling("large", "1", timeout=90) as progress:
        follow_to_quarter(progress)
        fill_up(disk / "foreign")
        list(progress)
    assert dockerd.inspect("large:1").image_id == samples.large.config.digest
    lines = mirror.logged("download_failed")
    # One a process that had it under way: prefetch begins it where the manifest was asked for, the client perhaps elsewhere.
    assert 1 <= len(lines) <= workers
    assert all(layer.digest in line for line in lines)
    assert len(mirror.log_lines(layer.digest)) <= 2 * workers
    wait_until(lambda: mirror.metric(BYPASSED) == len(lines), "the metric", 5)
    assert "Traceback" not in "".join(mirror.log_lines("Traceback"))

    (disk / "foreign").unlink()
    dockerd.remove_all()
    dockerd.pull("large", "1")
    assert dockerd.inspect("large:1").image_id == samples.large.config.digest
    wait_until(lambda: mirror.metric(COMMITTED) >= 1, "the commit", 30)
    assert blob(mirror, "large", layer).headers["X-Cache"] == "HIT"


def test_full_disk_from_the_start(
    directory: Path, numbers: Iterator[int], upstream: Upstream, port: int, stack: ExitStack, disk: Path, dockerd: Dockerd,
    samples: Samples,
) -> None:  # fmt: skip
    """On a disk without a byte to spare pulls of images that were never pulled succeed past the store."""
    mirror = start_mirror(
        directory / f"mirror-{next(numbers)}", [upstream.url], port=port, storage={"path": str(disk / "store"), "min_free": "0"}
    )
    stack.enter_context(closing(mirror))
    fill_up(disk / "foreign")
    for name in ("app", "single"):
        dockerd.pull(name, "1")
    assert dockerd.inspect("single:1").image_id == samples.single.config.digest
    mirror.check_log()


def test_disk_read_only_in_the_middle_of_a_pull(
    directory: Path, numbers: Iterator[int], throttle: Throttle, port: int, stack: ExitStack, dockerd: Dockerd, samples: Samples
) -> None:
    """A disk that becomes read-only while dockerd pulls: the pull succeeds, and so do later ones, cached or not."""
    disk = stack.enter_context(loop_disk(directory / f"disk-{next(numbers)}", 160 * MEGABYTE))
    mirror = start_mirror(
        directory / f"mirror-{next(numbers)}",
        [throttle.url],
        port=port,
        storage={"path": str(disk / "store"), "min_free": "0"},
        sections=ONE_CONNECTION,
    )
    stack.enter_context(closing(mirror))
    held = samples.single.layers[0]
    dockerd.pull("single", "1")
    # All of the small image, and the config of the large one: only its layer is under way.
    others = 1 + len(samples.single.layers) + 1
    with dockerd.pulling("large", "1", timeout=90) as progress:
        follow_to_quarter(progress)
        wait_until(lambda: mirror.metric(COMMITTED) == others, "the commit of everything else")
        break_disk(disk)
        list(progress)
    assert dockerd.inspect("large:1").image_id == samples.large.config.digest
    assert mirror.metric(BYPASSED) == 1
    assert len(mirror.logged("download_failed")) == 1
    dockerd.remove_all()
    for name in ("single", "large"):
        dockerd.pull(name, "1")
        assert dockerd.inspect(f"{name}:1").image_id == getattr(samples, name).config.digest
    assert blob(mirror, "single", held).headers["X-Cache"] == "HIT"
    assert request("GET", f"{mirror.admin_url}/readyz").status == 503


@pytest.mark.parametrize("bound", ["max_size", "min_free"])
def test_eviction_makes_room(
    bound: str, directory: Path, numbers: Iterator[int], upstream: Upstream, port: int, stack: ExitStack, disk: Path,
    dockerd: Dockerd, samples: Samples,
) -> None:  # fmt: skip
    """On a disk of 100 MiB with room for one of two images by either bound, the later one is cached, and the bound kept."""
    bounds = {"max_size": {"max_size": "65MiB", "min_free": "0"}, "min_free": {"max_size": "0", "min_free": "35MiB"}}[bound]
    mirror = start_mirror(
        directory / f"mirror-{next(numbers)}", [upstream.url], port=port, storage={"path": str(disk / "store"), **bounds}
    )
    stack.enter_context(closing(mirror))
    for _ in range(2):
        for name in ("app", "large"):
            dockerd.remove_all()
            dockerd.pull(name, "1")
            used = sum(path.stat().st_blocks * 512 for path in (disk / "store").rglob("*") if path.is_file())
            assert used <= 66 * MEGABYTE
    assert mirror.metric(f'evicted_blobs_total{{reason="{bound}"}}') > 0
    wait_until(lambda: blob(mirror, "large", samples.large.layers[0]).headers["X-Cache"] == "HIT", "the layer is held", 10)


def test_body_goes_on_where_it_was(
    directory: Path, numbers: Iterator[int], throttle: Throttle, stack: ExitStack, disk: Path, samples: Samples
) -> None:
    """When the disk gets full, a body that is under way goes on from the reader's own place: no byte is fetched for it again."""
    layer = samples.large.layers[0]
    path = f"/v2/library/large/blobs/{layer.digest}"
    mirror = start_mirror(
        directory / f"mirror-{next(numbers)}",
        [throttle.url],
        storage={"path": str(disk / "store"), "min_free": "0"},
        sections=ONE_CONNECTION,
    )
    stack.enter_context(closing(mirror))
    before = throttle.bytes_sent(path)
    with stream("GET", mirror.url + path) as response:
        first = read_exactly(response, len(layer.data) // 2)
        fill_up(disk / "foreign")
        rest = response.read()
    assert hashlib.sha256(first + rest).hexdigest() == layer.digest.removeprefix("sha256:")
    wait_until(lambda: throttle.bytes_sent(path) - before >= len(layer.data), "the slow line's log", 10)
    # What the connection that was given up had in its buffers is counted too; from the start anew would make it 1.5 and more.
    assert throttle.bytes_sent(path) - before < 1.4 * len(layer.data)
