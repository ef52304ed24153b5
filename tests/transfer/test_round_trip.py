"""From one mirror to another one without a network between them: what is exported here is imported there."""

import asyncio
import json

import pytest

from mirror.maintenance.interrupted_imports import InterruptedImports
from tests.mirror.images import pull
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, manifest_path
from tests.support.waiting import eventually
from tests.transfer.conftest import sender
from tests.trust.conftest import key, trusting
from tests.trust.signing import Key, sig_tag, sign, sign_bundle

__all__ = ["key", "trusting"]

NAME = f"docker.io/{APP}:1"
OFFLINE = {"offline": True}


async def export(mirror, *images, **options):
    """The bytes of a bundle."""
    url = f"http://127.0.0.1:{mirror.admin_port}/api/v1/export"
    async with mirror.session.post(url, json={"images": list(images), **options}) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.read()


async def test_image_of_several_platforms(hub, mirror, tmp_path):
    """All platforms or one: the index keeps its digest, and each platform is pulled whole without a connection to upstream."""
    image = hub.add_image(APP, "1", platforms=["linux/amd64", "linux/arm64"])
    part = await export(mirror, NAME, platforms=["linux/arm64"])
    whole = await export(mirror, NAME, platforms=["linux/amd64", "linux/arm64"])
    hub.reset_counters()
    for data, platforms in ((whole, {"linux/amd64", "linux/arm64"}), (part, {"linux/arm64"})):
        async with MirrorUnderTest(hub, tmp_path / str(len(data)), **OFFLINE) as other:
            (imported,) = (await sender(other)(data)).images
            assert (imported.name, imported.digest, set(imported.platforms)) == (NAME, image.digest, platforms)
            assert (await other.get(manifest_path("1"))).body == image.raw
            for platform in platforms:
                child = next(child for name, child in image.children.items() if str(name) == platform)
                assert set(await pull(other, child, child.digest)) == {"HIT"}
    assert not hub.count()


async def test_signatures_come_along(hub, mirror, tmp_path):
    """Both forms of signatures, as tags and as referrers."""
    image = hub.add_image(APP, "1")
    signer = Key.ecdsa()
    signature, referrer = sign(hub, APP, image.digest, signer), sign_bundle(hub, APP, image.digest, signer)
    data = await export(mirror, NAME)
    async with MirrorUnderTest(hub, tmp_path / "other", **OFFLINE) as other:
        sent = await sender(other)(data)
        assert [one.result for one in sent.images] == ["imported"] * len(sent.images), sent.answer
        assert (await other.head(manifest_path(sig_tag(image.digest)))).headers["Docker-Content-Digest"] == signature
        # A registry need not filter by type.
        for query in ("", "?artifactType=application/spdx%2Bjson"):
            answer = await other.get(f"/v2/{APP}/referrers/{image.digest}{query}")
            assert [entry["digest"] for entry in json.loads(answer.body)["manifests"]] == [referrer]
            assert "OCI-Filters-Applied" not in answer.headers


@pytest.mark.parametrize("sign_it", [sign, sign_bundle])
async def test_what_is_signed_is_imported_where_that_is_required(hub, mirror, trusting, key, sign_it):
    """The rule is kept without a network: the signature is in the bundle."""
    image = hub.add_image(APP, "1")
    sign_it(hub, APP, image.digest, key)
    data = await export(mirror, NAME)
    async with trusting(store="other", settings=OFFLINE) as other:
        sent = await sender(other)(data)
        assert {one.result for one in sent.images} == {"imported"}, sent.answer
        assert set(await pull(other, image, "1")) == {"HIT"}


@pytest.mark.parametrize("signed", [False, True])
async def test_what_is_not_signed_is_refused_where_that_is_required(hub, mirror, trusting, signed):
    """Nor is what another key has signed. Nothing of it stays, and the tag names what it named."""
    image = hub.add_image(APP, "1")
    if signed:
        sign(hub, APP, image.digest, Key.ecdsa())
    data = await export(mirror, NAME)
    async with trusting(store="other", settings=OFFLINE) as other:
        sent = await sender(other)(data)
        refused = [one for one in sent.images if one.result == "refused"]
        assert [one.name for one in refused] == [NAME]
        assert "sign" in refused[0].cause
        await asyncio.to_thread(InterruptedImports(other.store).clear)
        await eventually(lambda: not list((other.store_path / "imports").iterdir()))
        assert (await other.get(manifest_path("1"))).status in (403, 404)
        assert not other.holds(image.digest)
        assert not other.holds(image.layers[0].digest)


async def test_only_what_is_new(hub, mirror, tmp_path):
    """A bundle since another one needs that one, and says so."""
    old = hub.add_image(APP, "1", layers=[b"base", b"old"])
    new = hub.add_image(APP, "2", layers=[b"base", b"new"])
    first = await export(mirror, NAME)
    digests = [old.digest, old.config.digest, *(layer.digest for layer in old.layers)]
    second = await export(mirror, f"docker.io/{APP}:2", exclude=digests)
    async with MirrorUnderTest(hub, tmp_path / "other", **OFFLINE) as other:
        send = sender(other)
        (refused,) = (await send(second)).images
        assert (refused.result, old.layers[0].digest in refused.cause) == ("refused", True)
        for data in (first, second):
            assert [one.result for one in (await send(data)).images] == ["imported"]
        assert set(await pull(other, new, "2")) == {"HIT"}
