"""Different clients pull the same image at the same time: the upstream is asked once."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.e2e.harness.containerd import Containerd
from tests.e2e.harness.dockerd import Dockerd
from tests.e2e.harness.mirror import Mirror, start_mirror
from tests.e2e.harness.samples import Samples
from tests.e2e.harness.skopeo import Skopeo
from tests.e2e.harness.throttle import ONE_CONNECTION, Throttle
from tests.e2e.harness.upstream import Upstream
from tests.support.waiting import wait_until

pytestmark = pytest.mark.e2e

BYTES_PER_SECOND = 10 * 1024 * 1024


@pytest.fixture
def throttle(directory: Path, numbers: Iterator[int], upstream: Upstream) -> Iterator[Throttle]:
    """A line slow enough that all clients come while the first download is under way."""
    with closing(Throttle(directory / f"throttle-{next(numbers)}", upstream.url, BYTES_PER_SECOND)) as started:
        yield started


@pytest.fixture
def mirror(directory: Path, numbers: Iterator[int], throttle: Throttle) -> Iterator[Mirror]:
    """A mirror with an empty store behind the slow line."""
    with closing(start_mirror(directory / f"mirror-{next(numbers)}", [throttle.url], sections=ONE_CONNECTION)) as started:
        yield started


def test_clients_at_the_same_time_share_one_download(
    directory: Path, numbers: Iterator[int], mirror: Mirror, throttle: Throttle, samples: Samples
) -> None:
    """dockerd, containerd and skopeo pull a cold image together; its layer is downloaded once."""
    layer = samples.large.layers[0]
    path = f"/v2/library/large/blobs/{layer.digest}"
    with ExitStack() as stack:
        dockerd = stack.enter_context(closing(Dockerd(directory / f"dockerd-{next(numbers)}", mirror.url)))
        containerd = stack.enter_context(closing(Containerd(directory / f"containerd-{next(numbers)}")))
        skopeo = Skopeo(directory / f"skopeo-{next(numbers)}", mirror.port)
        hosts = containerd.hosts("only-mirror", "docker.io", "http://127.0.0.1:1", mirror.url)
        pool = stack.enter_context(ThreadPoolExecutor(3))
        pulls = [
            pool.submit(dockerd.pull, "large", "1"),
            pool.submit(containerd.pull, hosts, "docker.io/library/large:1"),
            pool.submit(skopeo.copy, "docker.io/library/large:1"),
        ]
        for pull in pulls:
            pull.result(timeout=90)

        assert dockerd.inspect("large:1").image_id == samples.large.config.digest
        assert layer.digest in containerd.held_digests()
    wait_until(lambda: throttle.bytes_sent(path) >= len(layer.data), "the slow line's log", 10)
    # What an abandoned connection had in its buffers is counted too; a second download would make it 2.
    assert throttle.bytes_sent(path) < 1.1 * len(layer.data)
