"""Manifests: by digest for ever, by tag as fresh as the policy wants."""

import asyncio
import hashlib

import pytest

from tests.fakehub import (
    DOCKER_MANIFEST,
    OCI_INDEX,
    Chunked,
    Corrupt,
    HeadWithoutDigest,
    HeadWithoutLength,
    HugeBody,
    NoHeaders,
    Rule,
)
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, TAG, manifest_path
from tests.support.waiting import LIMIT

HEADERS = ("Content-Type", "Content-Length", "Docker-Content-Digest", "ETag")


async def test_digest_is_for_ever(hub, mirror, clock):
    """What was fetched by digest is served years later, with upstream gone."""
    image = hub.add_image(APP, "1")
    assert (await mirror.get(manifest_path(image.digest))).cache == "MISS"
    await hub.stop()
    clock.advance(10 * 365 * 86400)
    answer = await mirror.get(manifest_path(image.digest))
    assert (answer.status, answer.cache, answer.body) == (200, "HIT", image.raw)


async def test_digest_survives_a_restart(hub, mirror, tmp_path):
    """Another process over the same store serves it from disk, with its media type."""
    image = hub.add_image(APP, "1", docker=True)
    await mirror.get(manifest_path(image.digest))
    hub.reset_counters()
    async with MirrorUnderTest(hub, mirror.store_path) as other:
        answer = await other.get(manifest_path(image.digest))
    assert (answer.cache, answer.body, answer.headers["Content-Type"]) == ("HIT", image.raw, DOCKER_MANIFEST)
    assert hub.count() == 0


async def test_fresh_tag_needs_no_upstream(hub, mirror, clock):
    """Within its time to live a tag is served without a word with upstream."""
    hub.add_image(APP, "1")
    await mirror.get(TAG)
    hub.reset_counters()
    clock.advance(45)
    assert (await mirror.get(TAG)).cache == "HIT"
    assert hub.count() == 0


async def test_old_tag_is_revalidated_by_head(hub, mirror, clock):
    """After its time to live one HEAD, which Docker Hub does not count as a pull, makes a tag fresh again."""
    image = hub.add_image(APP, "1")
    await mirror.get(TAG)
    hub.reset_counters()
    clock.advance(61)
    answer = await mirror.get(TAG)
    assert (answer.cache, answer.body) == ("REVALIDATED", image.raw)
    assert (await mirror.get(TAG)).cache == "HIT"
    assert (hub.count("HEAD", "manifest"), hub.count("GET", "manifest")) == (1, 0)


async def test_moved_tag_is_fetched_by_digest_once(hub, mirror, clock):
    """A tag that has moved costs one HEAD and one GET of the new digest, and the old digest stays."""
    old = hub.add_image(APP, "1", layers=[b"old"])
    await mirror.get(TAG)
    new = hub.add_image(APP, "1", layers=[b"new"])
    hub.reset_counters()
    clock.advance(61)
    answer = await mirror.get(TAG)
    assert (answer.cache, answer.body) == ("MISS", new.raw)
    assert (await mirror.get(TAG)).cache == "HIT"
    assert hub.count("HEAD", "manifest", reference="1") == 1
    assert [seen.reference for seen in hub.find("GET", "manifest")] == [new.digest]
    assert (await mirror.get(manifest_path(old.digest))).cache == "HIT"


async def test_first_pull_leaves_the_others_in_memory(hub, mirror):
    """A tag that is new here makes nothing untrue: what is remembered of other tags is served without a look at the disk."""
    image = hub.add_image(APP, "1")
    hub.add_image(APP, "2")
    await mirror.get(TAG)
    await mirror.get(manifest_path("2"))
    mirror.blob_path(image.digest).unlink()
    assert (await mirror.get(TAG)).cache == "HIT"


async def test_tag_moved_back_to_a_held_digest(hub, mirror, clock):
    """A tag that moves to something held already costs a HEAD only."""
    old = hub.add_image(APP, "1", layers=[b"old"])
    await mirror.get(TAG)
    hub.add_image(APP, "1", layers=[b"new"])
    clock.advance(61)
    await mirror.get(TAG)
    hub.move_tag(APP, "1", old.digest)
    clock.advance(61)
    hub.reset_counters()
    assert (await mirror.get(TAG)).body == old.raw
    assert (hub.count("HEAD", "manifest"), hub.count("GET", "manifest")) == (1, 0)


async def test_askers_share_one_check(hub, mirror, clock, all_in):
    """However many ask for an old tag at once, upstream is asked once."""
    image = hub.add_image(APP, "1")
    await mirror.get(TAG)
    clock.advance(61)
    hub.reset_counters()
    held = NoHeaders()
    hub.script(Rule(kind="manifest", method="HEAD"), held)
    asking = [asyncio.create_task(mirror.get(TAG)) for _ in range(20)]
    await all_in(20)
    held.release()
    answers = await asyncio.gather(*asking)
    assert {answer.body for answer in answers} == {image.raw}
    assert sorted(answer.cache for answer in answers) == ["JOINED"] * 19 + ["REVALIDATED"]
    assert hub.count(kind="manifest") == 1


async def test_askers_share_one_fetch(hub, mirror, all_in):
    """However many ask for an unknown tag at once, upstream counts one pull."""
    image = hub.add_image(APP, "1")
    held = NoHeaders()
    hub.script(Rule(kind="manifest", method="GET"), held)
    asking = [asyncio.create_task(mirror.get(TAG)) for _ in range(20)]
    await all_in(20)
    held.release()
    answers = await asyncio.gather(*asking)
    assert {answer.body for answer in answers} == {image.raw}
    assert sorted(answer.cache for answer in answers) == ["JOINED"] * 19 + ["MISS"]
    assert hub.count("GET", "manifest", status=200) == 1


async def test_check_goes_on_when_its_asker_leaves(hub, mirror):
    """A fetch belongs to the service: who asked for it may leave, and it is done all the same."""
    image = hub.add_image(APP, "1")
    held = NoHeaders()
    hub.script(Rule(kind="manifest", method="GET"), held)
    asking = asyncio.create_task(mirror.get(TAG))
    await asyncio.wait_for(held.reached.wait(), LIMIT)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    held.release()
    assert (await mirror.get(TAG)).body == image.raw
    assert hub.count("GET", "manifest", status=200) == 1


@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize("platforms", [None, ["linux/amd64", "linux/arm64/v8"]])
async def test_head_and_get_agree(hub, mirror, docker, platforms):
    """Type, length and digest are the same on HEAD and GET, cold and warm, by tag and by digest."""
    image = hub.add_image(APP, "1", platforms=platforms, docker=docker)
    wanted = [image.media_type, str(len(image.raw)), image.digest, f'"{image.digest}"']
    for reference in ("1", image.digest) * 2:
        for method in ("HEAD", "GET"):
            answer = await mirror.get(manifest_path(reference), method)
            assert [answer.headers[name] for name in HEADERS] == wanted
            assert answer.body == (image.raw if method == "GET" else b"")
            assert "Content-Encoding" not in answer.headers


async def test_index_and_its_children(hub, mirror):
    """The children of an index are manifests of their own, each to the byte."""
    image = hub.add_image(APP, "1", platforms=["linux/amd64", "linux/arm64"])
    assert (await mirror.get(TAG)).headers["Content-Type"] == OCI_INDEX
    for child in image.children.values():
        answer = await mirror.get(manifest_path(child.digest))
        assert (answer.body, answer.headers["Content-Type"]) == (child.raw, child.media_type)


async def test_head_of_unknown_tag_stays_a_head(hub, mirror):
    """A client's HEAD costs no pull upstream."""
    image = hub.add_image(APP, "1")
    answer = await mirror.head(TAG)
    assert (answer.cache, answer.headers["Docker-Content-Digest"]) == ("MISS", image.digest)
    assert hub.count("HEAD", "manifest", status=200) == 1
    assert hub.count("GET", "manifest") == 0


@pytest.mark.parametrize("fault", [HeadWithoutLength(), HeadWithoutDigest()])
@pytest.mark.parametrize("reference", ["1", "digest"])
async def test_thin_head_falls_back_to_get(hub, mirror, fault, reference):
    """Where upstream's HEAD lacks length or digest, the client gets both all the same."""
    image = hub.add_image(APP, "1")
    hub.script(Rule(kind="manifest", method="HEAD", times=None), fault)
    answer = await mirror.head(manifest_path(image.digest if reference == "digest" else reference))
    assert [answer.headers[name] for name in HEADERS[:3]] == [image.media_type, str(len(image.raw)), image.digest]


async def test_revalidation_by_a_thin_head(hub, mirror, clock):
    """An old tag is checked by GET where upstream's HEAD does not tell the digest."""
    hub.add_image(APP, "1", layers=[b"old"])
    await mirror.get(TAG)
    new = hub.add_image(APP, "1", layers=[b"new"])
    clock.advance(61)
    hub.script(Rule(kind="manifest", method="HEAD", times=None), HeadWithoutDigest())
    assert (await mirror.get(TAG)).body == new.raw


async def test_manifest_too_large(hub, mirror):
    """A manifest over 4 MiB is refused by its announcement, without a byte of it being read on."""
    hub.add_image(APP, "1")
    hub.script(Rule(kind="manifest", method="GET"), HugeBody((4 << 20) + 1))
    answer = await mirror.get(TAG)
    assert (answer.status, answer.code()) == (503, "UNAVAILABLE")


async def test_manifest_without_end(hub, mirror):
    """A manifest whose length is not announced is read up to 4 MiB and no further."""
    hub.add_image(APP, "1")
    hub.script(Rule(kind="manifest", method="GET"), Chunked(endless=True))
    answer = await mirror.get(TAG)
    assert (answer.status, answer.code()) == (503, "UNAVAILABLE")
    # What the sockets between hold comes on top of what is read.
    assert hub.bytes_sent() < 32 << 20


async def test_manifest_of_just_4_mib(hub, mirror):
    """4 MiB are a manifest, and it is held to the byte."""
    padding = b" " * ((4 << 20) - 2)
    raw = b'{"schemaVersion":2,"mediaType":"' + DOCKER_MANIFEST.encode() + b'","config":{"digest":"sha256:' + b"0" * 64
    raw += b'","size":2,"mediaType":"application/json"},"layers":[]}'
    raw += padding[: (4 << 20) - len(raw)]
    digest = hub.add_manifest(APP, raw, DOCKER_MANIFEST, "1")
    for outcome in ("MISS", "HIT"):
        answer = await mirror.get(manifest_path(digest))
        assert (answer.status, answer.cache, answer.sha256) == (200, outcome, digest)


async def test_sha512(hub, mirror, monkeypatch):
    """A manifest asked for by a sha512 digest is verified, held and named by that digest."""
    image = hub.add_image(APP, "1")
    digest = "sha512:" + hashlib.sha512(image.raw).hexdigest()
    sha512_hub(hub, monkeypatch, APP, digest, image)
    for outcome in ("MISS", "HIT"):
        answer = await mirror.get(manifest_path(digest))
        assert (answer.status, answer.cache, answer.headers["Docker-Content-Digest"]) == (200, outcome, digest)
        assert answer.body == image.raw
    assert mirror.holds(digest)


async def test_wrong_bytes_are_refused(hub, mirror):
    """Bytes without the digest they were asked by are an outage, and are kept nowhere."""
    image = hub.add_image(APP, "1")
    hub.script(Rule(kind="manifest", method="GET"), Corrupt(at=len(image.raw) - 2))
    answer = await mirror.get(manifest_path(image.digest))
    assert answer.status == 503
    assert not mirror.holds(image.digest)
    assert (await mirror.get(manifest_path(image.digest))).body == image.raw


def sha512_hub(hub, monkeypatch, repository, digest, image):
    """Let the fake hold a manifest under a sha512 digest, which it does not know by itself."""
    import re

    from tests.fakehub import registry
    from tests.fakehub.catalog import Manifest

    monkeypatch.setattr(registry, "DIGEST", re.compile(r"sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128}"))
    hub.repositories[repository].manifests[digest] = Manifest(image.raw, image.media_type)
