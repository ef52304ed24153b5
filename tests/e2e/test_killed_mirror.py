"""The mirror's own process ends in the middle of a pull: by SIGKILL, and in order by SIGTERM."""

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPResponse
from pathlib import Path

import pytest

from tests.e2e.harness.client import request, stream
from tests.e2e.harness.dockerd import Dockerd, Progress, PullError
from tests.e2e.harness.mirror import Mirror, start_mirror
from tests.e2e.harness.samples import Samples
from tests.e2e.harness.throttle import ONE_CONNECTION, Throttle
from tests.e2e.harness.upstream import Upstream
from tests.support.ports import free_port

pytestmark = pytest.mark.e2e

# The large layer takes 5 s by one connection.
BYTES_PER_SECOND = 12 * 1024 * 1024
MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def throttle(directory: Path, numbers: Iterator[int], upstream: Upstream) -> Iterator[Throttle]:
    """The slow line to the upstream."""
    started = Throttle(directory / f"throttle-{next(numbers)}", upstream.url, BYTES_PER_SECOND)
    try:
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def port() -> int:
    """The port at which each mirror of this file listens in turn, so that one daemon serves all tests."""
    return free_port()


@pytest.fixture
def mirror(directory: Path, numbers: Iterator[int], throttle: Throttle, port: int) -> Iterator[Mirror]:
    """A mirror with an empty store behind the slow line."""
    started = start_mirror(directory / f"mirror-{next(numbers)}", [throttle.url], port=port, sections=ONE_CONNECTION)
    try:
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def daemon(directory: Path, numbers: Iterator[int], port: int) -> Iterator[Dockerd]:
    """One daemon for this file."""
    started = Dockerd(directory / f"dockerd-{next(numbers)}", f"http://127.0.0.1:{port}")
    try:
        yield started
    finally:
        started.close()


@pytest.fixture
def layer_path(samples: Samples) -> str:
    """The path of the large layer."""
    return f"/v2/library/large/blobs/{samples.large.layers[0].digest}"


def follow_to_quarter(progress: Iterator[Progress]) -> None:
    """Follow a pull until the daemon has a quarter of the large layer; fail if it ends before."""
    for entry in progress:
        if entry.status == "Downloading" and entry.total > MEGABYTE and entry.current > entry.total / 4:
            assert entry.current < entry.total * 3 / 4, "the line is not slow enough for this test"
            return
    pytest.fail("the pull ended before a quarter of the layer had been reported")


def read_exactly(response: HTTPResponse, size: int) -> bytes:
    """The next `size` bytes of a body; fails if it is shorter."""
    data = response.read(size)
    assert len(data) == size
    return data


def sha256(*parts: bytes) -> str:
    """The digest of the parts together."""
    return f"sha256:{hashlib.sha256(b''.join(parts)).hexdigest()}"


def test_pull_after_sigkill_in_the_middle_of_a_pull(dockerd: Dockerd, mirror: Mirror, samples: Samples) -> None:
    """A mirror killed while dockerd pulls a layer, and started again, serves the right image."""
    with dockerd.pulling("large", "1", timeout=90) as progress:
        follow_to_quarter(progress)
        mirror.crash()
        mirror.start()
        # The daemon tries on by itself; whether this pull still succeeds is the daemon's business.
        with suppress(PullError):
            list(progress)
    dockerd.remove_all()

    dockerd.pull("large", "1")

    assert dockerd.inspect("large:1").image_id == samples.large.config.digest


def test_download_after_sigkill_goes_on_where_it_was(
    mirror: Mirror, throttle: Throttle, samples: Samples, layer_path: str
) -> None:
    """After SIGKILL at half of a blob, it is served whole, and little more than the rest is downloaded."""
    layer = samples.large.layers[0]
    sent_before = throttle.bytes_sent(layer_path)
    with stream("GET", mirror.url + layer_path) as response:
        read_exactly(response, len(layer.data) // 2)
        mirror.crash()
    mirror.start()

    answer = request("GET", mirror.url + layer_path)

    assert answer.status == 200
    assert sha256(answer.body) == layer.digest
    # Fetching it all again would make at least 1.5 times the blob.
    assert throttle.bytes_sent(layer_path) - sent_before < 1.35 * len(layer.data)


def test_sigterm_lets_a_download_finish(mirror: Mirror, samples: Samples, layer_path: str) -> None:
    """After SIGTERM a body that is under way arrives whole, and the mirror exits with 0."""
    layer = samples.large.layers[0]
    with stream("GET", mirror.url + layer_path) as response:
        first = read_exactly(response, MEGABYTE)
        mirror.terminate()
        rest = response.read()

    mirror.finish()
    assert sha256(first, rest) == layer.digest


def test_sigterm_during_a_pull_of_dockerd(dockerd: Dockerd, mirror: Mirror, samples: Samples) -> None:
    """SIGTERM during a pull ends the mirror with 0, and after the next start the pull is right."""
    with dockerd.pulling("large", "1", timeout=90) as progress:
        follow_to_quarter(progress)
        mirror.stop()
        with suppress(PullError):
            list(progress)
    mirror.start()
    dockerd.remove_all()

    dockerd.pull("large", "1")

    assert dockerd.inspect("large:1").image_id == samples.large.config.digest


@pytest.mark.full
def test_sigterm_does_not_wait_for_a_stuck_client(mirror: Mirror, layer_path: str) -> None:
    """A client that stopped reading does not keep the mirror from exiting with 0 after the drain."""
    with stream("GET", mirror.url + layer_path) as response:
        read_exactly(response, MEGABYTE)
        mirror.terminate()
        mirror.finish()
