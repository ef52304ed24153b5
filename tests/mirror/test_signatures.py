"""Signatures and other referrers: kept with their images, so that these can be verified while upstream is out."""

import json
import os
import time

import pytest

from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.maintenance.leftovers import Leftovers
from mirror.storage.layout import Layout
from tests.fakehub import OCI_INDEX, OCI_MANIFEST
from tests.mirror.syncing import Orders
from tests.support.clock import Clock
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP
from tests.support.waiting import eventually


def sign(hub, repository, digest, suffix=".sig"):
    """Put a signature, or something like it, where cosign does; returns the tag and what it names."""
    tag = f"{digest.replace(':', '-')}{suffix}"
    return tag, hub.add_image(repository, tag, layers=[f"{suffix} of {digest}".encode()])


async def assert_pulled(mirror, repository, tag, image):
    """A client can have all of a signature."""
    for path, body in (
        (f"manifests/{tag}", image.raw),
        (f"manifests/{image.digest}", image.raw),
        (f"blobs/{image.layers[0].digest}", image.layers[0].data),
    ):
        answer = await mirror.get(f"/v2/{repository}/{path}")
        assert (answer.status, answer.body) == (200, body)


@pytest.mark.parametrize("restart", [False, True])
async def test_referrers_in_an_outage(hub, mirror, monkeypatch, restart):
    """The list of referrers that upstream gave last is served while it is out, also after a restart, and says why it is old."""
    image = hub.add_image(APP, "1")
    hub.add_referrer(APP, image.digest, "application/vnd.example.signature")
    path = f"/v2/{APP}/referrers/{image.digest}"
    fresh = await mirror.get(path)
    assert fresh.status == 200
    await hub.stop()
    async with MirrorUnderTest(hub, mirror.store_path) as again:
        asked = again if restart else mirror
        Clock(asked, monkeypatch).advance(61)
        answer = await asked.get(path)
        assert (answer.status, answer.cache, answer.body) == (200, "STALE", fresh.body)
        assert answer.headers["Content-Type"] == OCI_INDEX
        assert "Warning" in answer.headers
        assert (await asked.get(f"/v2/{APP}/referrers/sha256:{'0' * 64}")).status == 503


async def test_no_referrers_api_in_an_outage(hub, mirror):
    """That upstream has no list of referrers is said again while it is out: clients then look for a tag, and fail on all else."""
    image = hub.add_image(APP, "1")
    hub.referrers = False
    path = f"/v2/{APP}/referrers/{image.digest}"
    assert (await mirror.get(path)).status == 404
    await hub.stop()
    assert (await mirror.get(path)).status == 404


async def test_no_signature_in_an_outage(hub, mirror, clock):
    """That there is no signature is said again while upstream is out, after its no has expired; of other tags nothing is said."""
    image = hub.add_image(APP, "1")
    tag = f"{image.digest.replace(':', '-')}.sig"
    for name in (tag, "other"):
        assert (await mirror.get(f"/v2/{APP}/manifests/{name}")).status == 404
    clock.advance(31)
    await hub.stop()
    assert (await mirror.get(f"/v2/{APP}/manifests/{tag}")).status == 404
    assert (await mirror.get(f"/v2/{APP}/manifests/other")).status == 503
    await hub.start()
    await mirror.recovered()
    sign(hub, APP, image.digest)
    assert (await mirror.get(f"/v2/{APP}/manifests/{tag}")).status == 200
    name, digest = Repository.parse("docker.io", APP), Digest.parse(image.digest)
    assert mirror.store.index.tables["attachments"].keys_from(f"absent|{name}|{digest}|") == []


@pytest.mark.parametrize("referrers", [True, False])
async def test_warm_brings_signatures(hub, mirror, clock, referrers):
    """What is about an image and its platforms comes with it: tags of cosign, referrers by list or by the fallback tag."""
    hub.referrers = referrers
    image = hub.add_image(APP, "1", platforms=["linux/amd64"])
    child = image.children["linux/amd64"]
    signed = [sign(hub, APP, digest, suffix) for digest in (image.digest, child.digest) for suffix in (".sig", ".att", ".sbom")]
    referrer = hub.add_referrer(APP, image.digest, "application/vnd.example.bundle", b"bundle")
    raw = hub.repositories[APP].manifests[referrer].raw
    entry = {"mediaType": OCI_MANIFEST, "digest": referrer, "size": len(raw)}
    fallback = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode()
    if not referrers:
        hub.add_manifest(APP, fallback, OCI_INDEX, image.digest.replace(":", "-"))
    assert (await Orders(mirror).warm("app:1"))["result"] == "completed"
    clock.advance(61)
    await hub.stop()
    for tag, signature in signed:
        await assert_pulled(mirror, APP, tag, signature)
    assert (await mirror.get(f"/v2/{APP}/manifests/{referrer}")).body == raw
    payload = json.loads(raw)["layers"][0]["digest"]
    assert (await mirror.get(f"/v2/{APP}/blobs/{payload}")).body == b"bundle"
    listed = await mirror.get(f"/v2/{APP}/referrers/{image.digest}")
    if referrers:
        assert [found["digest"] for found in json.loads(listed.body)["manifests"]] == [referrer]
    else:
        assert listed.status == 404
        assert (await mirror.get(f"/v2/{APP}/manifests/{image.digest.replace(':', '-')}")).body == fallback


async def test_an_image_without_signatures_is_warmed(hub, mirror):
    """Most images have none, and an upstream in trouble about them does not fail the image."""
    hub.add_image(APP, "1")
    assert (await Orders(mirror).warm("app:1"))["result"] == "completed"


async def purge(mirror, match):
    """Purge, and return the figures."""
    status, answer = await Orders(mirror).ask("POST", "/api/v1/purge", {"match": match})
    assert status == 200
    return answer


async def test_purge_takes_signatures(hub, mirror):
    """What is about a purged image goes with it, and what is about another one stays."""
    images = {tag: hub.add_image(APP, tag) for tag in ("1", "2")}
    signed = {tag: sign(hub, APP, image.digest) for tag, image in images.items()}
    referrers = {tag: hub.add_referrer(APP, image.digest, payload=tag.encode()) for tag, image in images.items()}
    assert (await Orders(mirror).warm("app:1", "app:2"))["result"] == "completed"
    gone = await purge(mirror, f"docker.io/{APP}:1")
    assert gone["tags"] == 2
    assert gone["manifests"] == 3
    for tag, held in (("1", False), ("2", True)):
        for digest in (images[tag].digest, signed[tag][1].digest, referrers[tag], signed[tag][1].layers[0].digest):
            assert mirror.holds(digest) is held
    await hub.stop()
    assert (await mirror.get(f"/v2/{APP}/manifests/{signed['1'][0]}")).status == 503
    await assert_pulled(mirror, APP, *signed["2"])


async def test_signatures_age_with_their_image(hub, mirror):
    """What is about an image counts as used when it is, so that it is evicted no sooner."""
    image = hub.add_image(APP, "1")
    _, signature = sign(hub, APP, image.digest)
    referrer = hub.add_referrer(APP, image.digest, payload=b"bundle")
    assert (await Orders(mirror).warm("app:1"))["result"] == "completed"
    about = [Digest.parse(text) for text in (signature.digest, signature.layers[0].digest, referrer)]
    files, layout = mirror.store.files, Layout(str(mirror.store_path))
    await mirror.get(f"/v2/{APP}/manifests/1")
    for digest in about:
        os.utime(layout.blob(digest), (1.0, 1.0))
    mirror.usage.write(files, mirror.store.index)
    assert all(files.used(digest) >= files.used(Digest.parse(image.digest)) > 1.0 for digest in about)


async def test_signatures_of_allowed_images(hub, tmp_path):
    """Where only some tags may be pulled, so may be what is about what they name, and no other signature."""
    allowed, other = hub.add_image(APP, "1.0"), hub.add_image(APP, "2.0", layers=[b"other"])
    entry = {"upstreams": [hub.url], "token_hosts": [hub.token_host]}
    store = tmp_path / "store"
    async with MirrorUnderTest(hub, store, registries={"docker.io": entry}) as mirror:
        for tag in ("1.0", "2.0"):
            await mirror.get(f"/v2/{APP}/manifests/{tag}")
    rules = {**entry, "allow": [f"{APP}:1.*"]}
    async with MirrorUnderTest(hub, store, registries={"docker.io": rules}) as mirror:
        for image, status in ((allowed, 200), (other, 403)):
            tag, signature = sign(hub, APP, image.digest)
            for _ in range(2):
                answer = await mirror.get(f"/v2/{APP}/manifests/{tag}")
                assert answer.status == status
                assert status == 403 or answer.body == signature.raw


async def test_rows_about_what_is_gone_go(hub, mirror):
    """What was said about a manifest is forgotten a day after, if the manifest is gone."""
    image = hub.add_image(APP, "1")
    await mirror.get(f"/v2/{APP}/manifests/1")
    await mirror.get(f"/v2/{APP}/referrers/{image.digest}")
    attachments, table = mirror.store.index.attachments, mirror.store.index.tables["attachments"]
    await eventually(lambda: list(table.keys()), "the list in the index")
    mirror.store.files.delete(Digest.parse(image.digest))

    def is_held(repository, digest):
        return mirror.store.files.size(digest) is not None

    assert attachments.drop(is_held, time.time() - 86400) == 0
    assert attachments.drop(is_held, time.time() + 1) == 1
    assert list(table.keys()) == []


async def test_rows_about_what_others_hold_go(hub, mirror):
    """What was asked of other repositories about a held manifest does not stay for as long as that is held."""
    image = hub.add_image(APP, "1")
    await mirror.get(f"/v2/{APP}/manifests/1")
    tag = f"sha256-{image.digest.partition(':')[2]}.sig"
    names = [APP, *(f"library/other{number}" for number in range(5))]
    for name in names:
        hub.add_image(name, "1", layers=[name.encode()])
        assert (await mirror.get(f"/v2/{name}/manifests/{tag}")).status == 404
        await mirror.get(f"/v2/{name}/referrers/{image.digest}")
    table = mirror.store.index.tables["attachments"]
    await eventually(lambda: len(list(table.keys())) == 2 * len(names), "the rows in the index")
    leftovers = Leftovers(mirror.store.layout, mirror.store.files, mirror.store.index, lambda: time.time() + 2 * 86400)
    leftovers.clear()
    assert {key.split("|")[1] for key in table.keys()} == {f"docker.io/{APP}"}  # noqa: SIM118 - no mapping
