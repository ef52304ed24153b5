"""The upstream is down, silent, or not there yet: what was pulled can be pulled, and all else fails fast."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.harness.client import Answer, get_manifest
from tests.e2e.harness.containerd import Containerd
from tests.e2e.harness.containerd import PullError as ContainerdError
from tests.e2e.harness.dockerd import Dockerd, fetched_layers
from tests.e2e.harness.dockerd import PullError as DockerdError
from tests.e2e.harness.mirror import Mirror, start_mirror
from tests.e2e.harness.samples import Samples
from tests.e2e.harness.skopeo import CopyError, Skopeo
from tests.e2e.harness.upstream import Upstream
from tests.support.waiting import wait_until

pytestmark = pytest.mark.e2e

FAST_SECONDS = 30
# A silent upstream costs the connect and stall timeouts first, which a refused connection does not.
SILENCE_SECONDS = 40


@pytest.fixture(scope="module")
def mirror(directory: Path, numbers: Iterator[int], upstream: Upstream) -> Iterator[Mirror]:
    """A mirror whose tags are due for a check after one second."""
    started = start_mirror(directory / f"mirror-{next(numbers)}", [upstream.url], tag_ttl="1s")
    try:
        yield started
    finally:
        started.close()


@pytest.fixture(autouse=True)
def _recovered(mirror: Mirror) -> None:
    """A test begins when the mirror has noticed that the outage of the one before is over."""
    wait_until(mirror.sees_upstreams, "the mirror to see its upstreams again", 20)


@pytest.fixture(scope="module")
def dockerd(directory: Path, numbers: Iterator[int], mirror: Mirror) -> Iterator[Dockerd]:
    """A daemon of this file."""
    started = Dockerd(directory / f"dockerd-{next(numbers)}", mirror.url)
    try:
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def containerd(directory: Path, numbers: Iterator[int]) -> Iterator[Containerd]:
    """A containerd of this file."""
    started = Containerd(directory / f"containerd-{next(numbers)}")
    try:
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def only_mirror(containerd: Containerd, mirror: Mirror) -> Path:
    """A hosts directory in which nothing but the mirror can be reached."""
    return containerd.hosts("only-mirror", "docker.io", "http://127.0.0.1:1", mirror.url)


@pytest.fixture(scope="module")
def skopeo(directory: Path, numbers: Iterator[int], mirror: Mirror) -> Skopeo:
    """skopeo with the mirror in its registries.conf."""
    return Skopeo(directory / f"skopeo-{next(numbers)}", mirror.port)


def wait_stale(mirror: Mirror, name: str) -> Answer:
    """The answer for library/NAME:1 once its time to live has passed and the upstream was tried in vain."""
    answers: list[Answer] = []

    def stale() -> bool:
        answers.append(get_manifest(mirror.url, f"library/{name}", "1"))
        return answers[-1].headers["X-Cache"] == "STALE"

    wait_until(stale, f"X-Cache: STALE for library/{name}:1", SILENCE_SECONDS)
    return answers[-1]


def assert_unavailable(mirror: Mirror, limit: float, name: str = "never") -> None:
    """An image that was never pulled is a 503 with an OCI error body, within the limit in seconds."""
    began = time.monotonic()
    answer = get_manifest(mirror.url, f"library/{name}", "1")
    assert time.monotonic() - began < limit
    assert answer.status == 503
    error = json.loads(answer.body)["errors"][0]
    assert error["code"]
    assert error["message"]


def test_dockerd_pulls_from_the_cache(dockerd: Dockerd, mirror: Mirror, upstream: Upstream, samples: Samples) -> None:
    """With the upstream down and the tag past its time to live, dockerd pulls a cached image."""
    dockerd.pull("app", "1")
    dockerd.remove_all()

    with upstream.down():
        wait_stale(mirror, "app")
        progress = dockerd.pull("app", "1")

    assert fetched_layers(progress) == len(samples.app.for_host().layers)
    assert dockerd.inspect("app:1").image_id == samples.app.for_host().config.digest


def test_containerd_pulls_from_the_cache(
    containerd: Containerd, only_mirror: Path, mirror: Mirror, upstream: Upstream, samples: Samples
) -> None:
    """With the upstream down and the tag past its time to live, containerd pulls a cached image."""
    reference = "docker.io/library/oci:1"
    containerd.pull(only_mirror, reference)
    containerd.remove_all()

    with upstream.down():
        wait_stale(mirror, "oci")
        containerd.pull(only_mirror, reference)

    assert containerd.image_digest(reference) == samples.oci.manifest.digest
    assert {blob.digest for blob in samples.oci.for_host().blobs} <= containerd.held_digests()


def test_skopeo_copies_from_the_cache(skopeo: Skopeo, mirror: Mirror, upstream: Upstream) -> None:
    """With the upstream down and the tag past its time to live, skopeo copies a cached image."""
    before = skopeo.copy("docker.io/library/single:1")

    with upstream.down():
        wait_stale(mirror, "single")
        assert skopeo.copy("docker.io/library/single:1") == before


def test_stale_answer_has_the_pushed_bytes(mirror: Mirror, skopeo: Skopeo, upstream: Upstream, samples: Samples) -> None:
    """A tag served through an outage says STALE and has the bytes and the digest that were pushed."""
    skopeo.copy("docker.io/library/app:1")

    with upstream.down():
        answer = wait_stale(mirror, "app")

    assert answer.status == 200
    assert answer.body == samples.app.manifest.data
    assert answer.headers["Docker-Content-Digest"] == samples.app.manifest.digest
    assert answer.headers["Content-Type"] == samples.app.manifest.media_type


def test_unknown_image_fails_fast(
    dockerd: Dockerd,
    containerd: Containerd,
    only_mirror: Path,
    skopeo: Skopeo,
    mirror: Mirror,
    upstream: Upstream,
) -> None:
    """With the upstream down, an image that was never pulled fails for every client within seconds."""
    with upstream.down():
        assert_unavailable(mirror, FAST_SECONDS)
        with pytest.raises(DockerdError):
            dockerd.pull("never", "1", timeout=FAST_SECONDS)
        with pytest.raises(ContainerdError):
            containerd.pull(only_mirror, "docker.io/library/never:1", timeout=FAST_SECONDS)
        with pytest.raises(CopyError):
            skopeo.copy("docker.io/library/never:1", timeout=FAST_SECONDS)


@pytest.mark.full
def test_silent_upstream_is_not_waited_for_without_end(
    skopeo: Skopeo, mirror: Mirror, upstream: Upstream, samples: Samples
) -> None:
    """An upstream that never answers costs a bounded time: 503 for the unknown, STALE for the known."""
    skopeo.copy("docker.io/library/single:1")

    with upstream.frozen():
        # A client of an earlier test may still have asked for the other name when upstream was back.
        assert_unavailable(mirror, SILENCE_SECONDS, "silent")
        assert wait_stale(mirror, "single").body == samples.single.manifest.data


def test_mirror_starts_without_its_upstream(
    directory: Path, numbers: Iterator[int], upstream: Upstream, samples: Samples
) -> None:
    """A mirror that starts during an outage is alive, fails fast, and serves once the upstream is there."""
    with upstream.down():
        early = start_mirror(directory / f"mirror-{next(numbers)}", [upstream.url])
        try:
            assert_unavailable(early, FAST_SECONDS)
        except BaseException:
            early.close()
            raise
    try:
        ready = "an answer from the upstream that came back"
        wait_until(lambda: get_manifest(early.url, "library/app", "1").status == 200, ready, FAST_SECONDS)
        copied = Skopeo(directory / f"skopeo-{next(numbers)}", early.port).copy("docker.io/library/app:1")
        assert copied["manifest.json"] == samples.app.for_host().manifest.digest.removeprefix("sha256:")
    finally:
        early.close()
