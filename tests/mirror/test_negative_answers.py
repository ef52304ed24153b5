"""Upstream's no is an answer: repeated for a while, never replaced by something stale."""

import pytest

from tests.fakehub import OCI_MANIFEST, Headers, Rule, Status
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, TAG

SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"


async def test_unknown_tag(hub, mirror, clock):
    """A 404 is repeated for `not_found_ttl` without asking, then asked again."""
    hub.add_image(APP, "other")
    answer = await mirror.get(TAG)
    assert (answer.status, answer.code()) == (404, "MANIFEST_UNKNOWN")
    image = hub.add_image(APP, "1")
    hub.reset_counters()
    clock.advance(29)
    assert (await mirror.get(TAG)).status == 404
    assert (await mirror.head(TAG)).status == 404
    assert hub.count() == 0
    clock.advance(2)
    assert (await mirror.get(TAG)).body == image.raw


@pytest.mark.parametrize("kind", ["manifests", "blobs"])
async def test_unknown_digest(hub, mirror, clock, kind):
    """Upstream is asked once for a digest that it does not have, as long as its no is remembered."""
    hub.add_image(APP, "1")
    path = f"/v2/{APP}/{kind}/sha256:{'0' * 64}"
    code = {"manifests": "MANIFEST_UNKNOWN", "blobs": "BLOB_UNKNOWN"}[kind]
    assert (await mirror.get(path)).code() == code
    hub.reset_counters()
    answer = await mirror.get(path)
    assert (answer.status, answer.code(), hub.count()) == (404, code, 0)
    clock.advance(31)
    assert (await mirror.get(path)).status == 404
    assert hub.count() > 0


async def test_nothing_remembered(hub, tmp_path):
    """With `not_found_ttl: 0` a tag is there as soon as upstream has it."""
    hub.add_image(APP, "other")
    async with MirrorUnderTest(hub, tmp_path / "store", tags={"not_found_ttl": "0"}) as mirror:
        assert (await mirror.get(TAG)).status == 404
        hub.add_image(APP, "1")
        assert (await mirror.get(TAG)).status == 200


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_answers_are_not_outages(hub, mirror, clock, status):
    """What upstream takes back is not served any more, though it is held; the client gets 404 and no challenge."""
    image = hub.add_image(APP, "1")
    await mirror.get(TAG)
    for blob in [image.config, *image.layers]:
        await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")
    clock.advance(61)
    entry = hub.script(Rule(kind="manifest", host="registry", times=None), Status(status))
    for _ in range(2):
        answer = await mirror.get(TAG)
        assert answer.status == 404
        assert answer.cache is None
        assert "WWW-Authenticate" not in answer.headers
    assert await mirror.metric("stale_served_total") == 0
    assert entry.used == 1


async def test_private_repository(hub, mirror):
    """A repository that upstream does not grant, although it gave a token, is one that is not there."""
    hub.add_image(APP, "1")
    hub.private(APP, ["somebody"])
    answer = await mirror.get(TAG)
    assert (answer.status, answer.code()) == (404, "NAME_UNKNOWN")
    assert "WWW-Authenticate" not in answer.headers
    hub.reset_counters()
    assert (await mirror.get(TAG)).status == 404
    assert hub.count() == 0


async def test_deleted_tag_leaves_the_digest(hub, mirror, clock):
    """A deleted tag is gone, but what it named can still be pulled by digest."""
    image = hub.add_image(APP, "1")
    await mirror.get(TAG)
    hub.delete_tag(APP, "1")
    clock.advance(61)
    assert (await mirror.get(TAG)).status == 404
    assert (await mirror.get(f"/v2/{APP}/manifests/{image.digest}")).cache == "HIT"


async def test_manifest_digest_under_blobs(hub, mirror):
    """A manifest's digest asked for as a blob is none, and stays a manifest."""
    image = hub.add_image(APP, "1")
    blob, manifest = f"/v2/{APP}/blobs/{image.digest}", f"/v2/{APP}/manifests/{image.digest}"
    for method in ("HEAD", "GET"):
        assert (await mirror.get(blob, method)).status == 404
    assert (await mirror.get(manifest)).body == image.raw
    for method in ("HEAD", "GET"):
        assert (await mirror.get(blob, method)).status == 404
    assert (await mirror.get(manifest)).body == image.raw


async def test_blob_digest_under_manifests(hub, mirror):
    """A blob's digest asked for as a manifest is none, and stays a blob."""
    image = hub.add_image(APP, "1")
    layer = image.layers[0]
    blob, manifest = f"/v2/{APP}/blobs/{layer.digest}", f"/v2/{APP}/manifests/{layer.digest}"
    for method in ("HEAD", "GET"):
        assert (await mirror.get(manifest, method)).status == 404
    assert (await mirror.get(blob)).body == layer.data
    for method in ("HEAD", "GET"):
        assert (await mirror.get(manifest, method)).status == 404
    assert (await mirror.get(blob)).body == layer.data


async def test_schema1_is_passed_through(hub, mirror):
    """A schema 1 manifest, whose digest cannot be verified, reaches the client as it is and is never stored."""
    raw = b'{"schemaVersion": 1, "fsLayers": [], "signatures": []}'
    digest = hub.add_manifest(APP, raw, SCHEMA1, "1")
    for _ in range(2):
        answer = await mirror.get(TAG)
        assert (answer.status, answer.cache, answer.body) == (200, "BYPASS", raw)
        assert answer.headers["Content-Type"] == SCHEMA1
    assert not mirror.holds(digest)
    assert hub.count("GET", "manifest", status=200) == 2


@pytest.mark.parametrize("accept", [None, "*/*", OCI_MANIFEST, "application/nonsense, text/html;q=0.1"])
async def test_accept_does_not_matter(hub, mirror, accept):
    """Whatever a client accepts, it gets the manifest in its own type, and upstream is asked for every type."""
    image = hub.add_image(APP, "1", platforms=["linux/amd64"])
    headers = {} if accept is None else {"Accept": accept}
    answer = await mirror.get(TAG, headers=headers, skip_auto_headers=["Accept"])
    assert (answer.status, answer.headers["Content-Type"], answer.body) == (200, image.media_type, image.raw)
    sent = hub.find("GET", "manifest")[-1].headers.getall("Accept")
    assert len(sent) == 1
    assert "application/vnd.oci.image.index.v1+json" in sent[0]


async def test_several_accept_lines(hub, mirror):
    """Docker sends one Accept line per type; the answer is the same."""
    image = hub.add_image(APP, "1")
    lines = [("Accept", "application/vnd.docker.distribution.manifest.v2+json"), ("Accept", OCI_MANIFEST)]
    assert (await mirror.get(TAG, headers=lines)).body == image.raw


async def test_if_none_match(hub, mirror):
    """A client that has the manifest gets 304 without a body, cold and warm, and no other client ever does."""
    image = hub.add_image(APP, "1")
    for condition in (f'"{image.digest}"', image.digest, f'W/"{image.digest}"', f'"x", "{image.digest}"', "*") * 2:
        answer = await mirror.get(TAG, headers={"If-None-Match": condition})
        assert (answer.status, answer.body) == (304, b"")
        assert answer.headers["ETag"] == f'"{image.digest}"'
    for headers in ({}, {"If-None-Match": '"sha256:' + "0" * 64 + '"'}):
        assert (await mirror.get(TAG, headers=headers)).body == image.raw


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_if_none_match_of_a_blob(hub, mirror, method):
    """A client that has the blob gets 304, warm and cold, without a byte from upstream; one that upstream lacks is 404."""
    blob = hub.add_synthetic_blob(APP, 100_000)
    path = f"/v2/{APP}/blobs/{blob.digest}"
    answer = await mirror.get(path, method, headers={"If-None-Match": f'"{blob.digest}"'})
    assert (answer.status, answer.body, answer.headers["ETag"]) == (304, b"", f'"{blob.digest}"')
    assert hub.bytes_sent(blob.digest) == 0
    assert (await mirror.get(path, headers={"If-None-Match": '"sha256:x"'})).body == blob.data
    assert (await mirror.get(path, method, headers={"If-None-Match": f'W/"{blob.digest}"'})).status == 304
    unknown = f"/v2/{APP}/blobs/sha256:{'0' * 64}"
    assert (await mirror.get(unknown, method, headers={"If-None-Match": "*"})).status == 404


async def test_type_with_parameters(hub, mirror):
    """A media type that came with a charset goes out without it: clients compare it as a whole."""
    image = hub.add_image(APP, "1")
    hub.script(Rule(kind="manifest", times=None), Headers({"Content-Type": f"{image.media_type}; charset=utf-8"}))
    for method in ("HEAD", "GET"):
        assert (await mirror.get(TAG, method)).headers["Content-Type"] == image.media_type


async def test_wrong_digest_header(hub, mirror, clock):
    """Upstream's word about the digest of a tag's bytes has to hold; a header that is no digest is nonsense."""
    hub.add_image(APP, "1")
    for lie in ("sha256:" + "0" * 64, "nonsense"):
        entry = hub.script(Rule(kind="manifest", times=None), Headers({"Docker-Content-Digest": lie}))
        assert (await mirror.get(TAG)).status == 503
        entry.remove()
        clock.advance(2)
    assert (await mirror.get(TAG)).status == 200


async def test_head_of_another_digest(hub, mirror):
    """A HEAD by digest is answered with that digest, whatever upstream's headers say."""
    image = hub.add_image(APP, "1")
    hub.script(Rule(kind="manifest", method="HEAD", times=None), Headers({"Docker-Content-Digest": "sha256:" + "0" * 64}))
    answer = await mirror.head(f"/v2/{APP}/manifests/{image.digest}")
    assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, image.digest)
    assert int(answer.headers["Content-Length"]) == len(image.raw)
