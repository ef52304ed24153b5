"""Real clients are sent to the bucket for a large layer: they follow, without the credentials and headers of the mirror."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.e2e.harness.client import request
from tests.e2e.harness.containerd import Containerd
from tests.e2e.harness.dockerd import Dockerd
from tests.e2e.harness.mirror import Mirror, start_mirror
from tests.e2e.harness.samples import Samples
from tests.e2e.harness.skopeo import Skopeo
from tests.e2e.harness.upstream import Upstream
from tests.support.buckets import BucketServer, TestBucket
from tests.support.waiting import wait_until

pytestmark = pytest.mark.e2e

COUNT = 'requests_total{kind="blob",outcome="BYPASS",registry="docker.io",status="307"}'


@pytest.fixture(scope="module")
def server() -> Iterator[BucketServer]:
    """An S3 server."""
    with closing(BucketServer()) as started:
        yield started


@pytest.fixture(scope="module")
def bucket(server: BucketServer) -> TestBucket:
    """An empty bucket."""
    return server.bucket("redirects")


@pytest.fixture(scope="module")
def mirror(
    directory: Path, numbers: Iterator[int], upstream: Upstream, server: BucketServer, bucket: TestBucket, samples: Samples
) -> Iterator[Mirror]:
    """A mirror that has uploaded the large image, and redirects clients on this host."""
    place = directory / f"mirror-{next(numbers)}"
    key_file = directory / f"key-{next(numbers)}"
    key_file.write_text("id\nsecret\n")
    redirect = {"networks": ["127.0.0.0/8"], "min_size": "1MiB"}
    objects = {"url": f"s3://{bucket.name}", "endpoint": f"http://127.0.0.1:{server.port}", "access_key_file": str(key_file)}
    with closing(start_mirror(place, [upstream.url], sections={"objects": {**objects, "redirect": redirect}})) as started:
        Skopeo(directory / f"skopeo-{next(numbers)}", started.port).copy("docker.io/library/large:1")
        layer = samples.large.layers[0].digest.partition(":")[2]
        wait_until(lambda: any(layer in name for name in bucket.objects()), "the layer is uploaded", 60)
        yield started


def evict(mirror: Mirror, samples: Samples) -> None:
    """Have the store lose the layer, as an eviction does."""
    layer = samples.large.layers[0].digest.partition(":")[2]
    (mirror.store / "blobs" / "sha256" / layer[:2] / layer).unlink(missing_ok=True)


def redirects(mirror: Mirror) -> float:
    """How many requests were redirected."""
    is_counted = COUNT in request("GET", f"{mirror.admin_url}/metrics").body.decode()
    return mirror.metric(COUNT) if is_counted else 0.0


def test_skopeo(directory: Path, numbers: Iterator[int], mirror: Mirror, samples: Samples) -> None:
    """It has the image, and the mirror fetched nothing."""
    evict(mirror, samples)
    before = redirects(mirror)
    Skopeo(directory / f"skopeo-{next(numbers)}", mirror.port).copy("docker.io/library/large:1")
    assert redirects(mirror) == before + 1


def test_containerd(directory: Path, numbers: Iterator[int], mirror: Mirror, samples: Samples) -> None:
    """It has the image from nowhere else: the registry behind its mirror does not exist."""
    evict(mirror, samples)
    before = redirects(mirror)
    with closing(Containerd(directory / f"containerd-{next(numbers)}")) as containerd:
        hosts = containerd.hosts("only-mirror", "docker.io", "http://127.0.0.1:1", mirror.url)
        containerd.pull(hosts, "docker.io/library/large:1")
        assert samples.large.layers[0].digest in containerd.held_digests()
    assert redirects(mirror) >= before + 1


def test_dockerd(mirror: Mirror, samples: Samples, dockerd: Dockerd) -> None:
    """It runs with the mirror in its `registry-mirrors`."""
    evict(mirror, samples)
    before = redirects(mirror)
    dockerd.pull("large", "1")
    assert dockerd.inspect("large:1").image_id == samples.large.config.digest
    assert redirects(mirror) >= before + 1
