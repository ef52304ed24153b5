"""A RADOS gateway as the bucket: real signatures, conditions, URLs that expire, and lists of several pages."""

import asyncio
import json
import re
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from mirror.metrics import Metrics
from mirror.objects.address import BucketAddress
from mirror.objects.bucket import PART_BYTES, Bucket
from mirror.objects.calls import ObjectsUnavailable
from mirror.objects.keys import BLOBS
from tests.e2e.harness.ceph import ACCESS_KEY, SECRET, CephGateway
from tests.e2e.harness.client import request
from tests.e2e.harness.mirror import Mirror, start_mirror
from tests.e2e.harness.samples import Samples
from tests.e2e.harness.skopeo import Skopeo
from tests.e2e.harness.upstream import Upstream
from tests.support.names import sha256
from tests.support.waiting import LIMIT, wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.full, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def gateway(directory: Path, numbers: Iterator[int]) -> Iterator[CephGateway]:
    """One gateway with the buckets `mirrors` and `alone`."""
    with closing(CephGateway(directory / f"ceph-{next(numbers)}")) as started:
        for name in ("mirrors", "alone"):
            started.bucket(name)
        yield started


@pytest.fixture(scope="module")
def key_file(directory: Path) -> Path:
    """The credentials that the gateway knows."""
    path = directory / "ceph-key"
    path.write_text(f"{ACCESS_KEY}\n{SECRET}\n")
    return path


@pytest.fixture
def bucket(gateway: CephGateway, key_file: Path) -> Bucket:
    """The client of the mirror by itself."""
    address = BucketAddress("alone", "pre/fix", gateway.url, "us-east-1", key_file, answer_s=LIMIT)
    return Bucket(address, Metrics().objects_requests)


@pytest.fixture
def objects(gateway: CephGateway, key_file: Path) -> dict[str, object]:
    """The section of the configuration."""
    redirect = {"networks": ["127.0.0.0/8"], "min_size": "1MiB", "url_ttl": "1m"}
    return {
        "url": "s3://mirrors/e2e",
        "endpoint": gateway.url,
        "region": "us-east-1",
        "access_key_file": str(key_file),
        "redirect": redirect,
    }


async def test_conditions(bucket: Bucket) -> None:
    """A second write does not replace an object; one with other bytes does, where that is wanted."""
    assert await bucket.put("1/x", b"first", {"Content-Type": "a/b"})
    assert not await bucket.put("1/x", b"second", {"Content-Type": "a/b"})
    assert (await bucket.read("1/x", 100)).data == b"first"
    assert await bucket.put("1/x", b"third", {"rm-scopes": "one,two"}, replace=True)
    found = await bucket.read("1/x", 100)
    assert (found.data, found.metadata["rm-scopes"]) == (b"third", "one,two")
    await bucket.delete("1/x")
    assert await bucket.size("1/x") is None
    await bucket.delete("1/x")


async def test_parts(bucket: Bucket) -> None:
    """A large object comes in parts, as a whole, and by ranges."""
    pieces = [bytes([number]) * PART_BYTES for number in range(3)] + [b"end"]

    async def content() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    whole = b"".join(pieces)
    await bucket.put_parts("1/large", content(), len(whole), {"rm-size": str(len(whole))})
    async with bucket.open("1/large", 0, None) as stream:
        assert sha256(b"".join([block async for block in stream.blocks()])) == sha256(whole)
    async with bucket.open("1/large", PART_BYTES - 1, PART_BYTES + 1) as stream:
        assert b"".join([block async for block in stream.blocks()]) == b"\x00\x01"
        assert stream.size == len(whole)


async def test_pages(bucket: Bucket) -> None:
    """A list has all objects below a name, page by page, each with its size and time."""
    names = [f"{BLOBS}/sha256/00/{number:04}" for number in range(1005)]
    for start in range(0, len(names), 50):
        await asyncio.gather(*(bucket.put(name, b"12345", {}) for name in names[start : start + 50]))
    await bucket.put(f"{BLOBS}x", b"", {})
    pages = [page async for page in bucket.pages(BLOBS)]
    assert sorted(one.key for page in pages for one in page) == names
    assert len(pages) > 1
    assert {(one.size, one.written > 1.7e9) for page in pages for one in page} == {(5, True)}


async def test_signed_urls(bucket: Bucket) -> None:
    """Good for one object and a time; what somebody changes in it is refused."""
    await bucket.put("1/signed", b"content", {})
    url = await bucket.signed_url("1/signed", 60)
    assert await asyncio.to_thread(lambda: urllib.request.urlopen(url).read()) == b"content"
    changed = (
        re.sub("Signature=.", "Signature=x", url),
        url.replace("1/signed", "1/other"),
        url.replace("Expires=60", "Expires=600"),
        # Signed for a time that is over.
        await bucket.signed_url("1/signed", 1),
    )
    await asyncio.sleep(3)
    for wrong in changed:
        with pytest.raises(urllib.error.HTTPError, match="403"):
            await asyncio.to_thread(urllib.request.urlopen, wrong)


async def test_wrong_secret(gateway: CephGateway, tmp_path: Path) -> None:
    """It is refused, and said so."""
    (tmp_path / "key").write_text(f"{ACCESS_KEY}\nanother\n")
    address = BucketAddress("alone", "", gateway.url, "us-east-1", tmp_path / "key", answer_s=LIMIT)
    with pytest.raises(ObjectsUnavailable, match=r"403|Forbidden|SignatureDoesNotMatch"):
        await Bucket(address, Metrics().objects_requests).check()


def test_image_through_mirrors(
    directory: Path, numbers: Iterator[int], upstream: Upstream, objects: dict[str, object], samples: Samples
) -> None:
    """One mirror uploads; another one with an empty store has all from the gateway, and sends clients there."""
    layer = samples.large.layers[0]
    with closing(started(directory / f"mirror-{next(numbers)}", upstream, objects)) as first:
        Skopeo(directory / f"skopeo-{next(numbers)}", first.port).copy("docker.io/library/large:1")
        wait_until(lambda: uploads(first) >= 3, "uploaded", 90)
        wait_until(lambda: ready(first)["owed"] == 0, "nothing owed", 60)
        held = first.store / "blobs" / "sha256" / layer.digest[7:9] / layer.digest[7:]
        held.unlink()
        Skopeo(directory / f"skopeo-{next(numbers)}", first.port).copy("docker.io/library/large:1")
        assert first.metric('requests_total{kind="blob",outcome="BYPASS",registry="docker.io",status="307"}') == 1
        assert not held.exists()
    with closing(started(directory / f"mirror-{next(numbers)}", upstream, {**objects, "redirect": {}})) as second:
        Skopeo(directory / f"skopeo-{next(numbers)}", second.port).copy("docker.io/library/large:1")
        assert second.metric('source_bytes_total{source="objects"}') >= len(layer.data)
        assert second.metric('source_bytes_total{source="upstream"}') == 0


def started(place: Path, upstream: Upstream, objects: dict[str, object]) -> Mirror:
    """A mirror with the gateway behind its store."""
    return start_mirror(place, [upstream.url], sections={"objects": objects})


def uploads(mirror: Mirror) -> int:
    """How many blobs and manifests it has uploaded."""
    return len(mirror.log_lines("object_uploaded"))


def ready(mirror: Mirror) -> dict[str, object]:
    """What `/readyz` says of the bucket."""
    found: dict[str, dict[str, object]] = json.loads(request("GET", f"{mirror.admin_url}/readyz").body)
    return found["cluster"]
