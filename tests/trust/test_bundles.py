"""Bundles: signatures travel with their images, and an import lets a tag appear only if they count."""

import json

import pytest

from tests.fakehub import Rule, Status
from tests.support.names import APP, TAG, manifest_path
from tests.transfer.conftest import sender
from tests.trust.signing import Key, sign, sign_bundle
from tests.trust.test_pulls import paths, signed_alone, signed_by_bundle, signed_by_index, unsigned, wrong_key

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
NO_REFERRERS = Status(
    200, body=json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode(), content_type=OCI_INDEX
)
OFFLINE = {"settings": {"offline": True}, "store": "elsewhere"}


async def exported(mirror, *images):
    url = f"http://127.0.0.1:{mirror.admin_port}/api/v1/export"
    async with mirror.session.post(url, json={"images": list(images), "platforms": ["linux/amd64"]}) as response:
        assert response.status == 200
        return await response.read()


async def test_a_signed_image_travels(hub, trusting, key):
    """Exported from one mirror and imported into another one without a network, a signed image is pulled there as here."""
    for made in (signed_by_index, signed_alone, signed_by_bundle):
        image = made(hub, key)
        async with trusting(store=made.__name__) as here:
            bundle = await exported(here, "app:1")
        async with trusting(settings={"offline": True}, store=f"{made.__name__}-elsewhere") as there:
            sent = await sender(there)(bundle)
            assert {one.result for one in sent.images} == {"imported"}
            assert [(await there.get(path)).status for path in paths(image)] == [200] * len(paths(image))


@pytest.mark.parametrize("sign_it", [sign, sign_bundle])
async def test_a_bundle_with_the_signature_after_one_without(hub, trusting, key, sign_it):
    """The refusal of the first bundle is forgotten when the signature comes."""
    image, sent = unsigned(hub, key), []
    async with trusting(**OFFLINE) as there:
        for store in ("before", "after"):
            async with trusting(match="other/*", store=store) as here:
                sent.append(await sender(there)(await exported(here, "app:1")))
            sign_it(hub, APP, image.digest, key)
        refused, imported = ({one.result for one in answer.images} for answer in sent)
        assert ("refused" in refused, imported) == (True, {"imported"}), sent[1].answer
        assert (await there.get(TAG)).status == 200


@pytest.mark.parametrize("answer", [Status(404), NO_REFERRERS])
async def test_a_signature_that_only_the_bundle_has(hub, trusting, key, answer):
    """Upstream has the image, and has never had this signature: its answers do not hide what was imported."""
    image = signed_by_bundle(hub, key)
    async with trusting(match="other/*") as here:
        bundle = await exported(here, "app:1")
    hub.script(Rule(kind="referrers", times=None), answer)
    async with trusting(store="elsewhere") as there:
        # Upstream's answer is cached before the import, and comes again after it.
        await there.get(f"/v2/{APP}/referrers/{image.digest}")
        sent = await sender(there)(bundle)
        assert {one.result for one in sent.images} == {"imported"}, sent.answer
        assert [(await there.get(path)).status for path in paths(image)] == [200] * len(paths(image))


@pytest.mark.parametrize("made", [unsigned, wrong_key])
async def test_an_import_of_what_is_not_signed(hub, trusting, key, made):
    """No tag appears, nothing can be pulled by its digest, and the import says why."""
    image = made(hub, key)
    async with trusting(match="other/*") as here:
        bundle = await exported(here, "app:1")
    async with trusting(**OFFLINE) as there:
        sent = await sender(there)(bundle)
        (refused,) = (one for one in sent.images if not one.attached)
        assert refused.result == "refused"
        assert "trust: library/*" in refused.cause
        assert (await there.get(TAG)).status == 404
        child = next(iter(image.children.values()))
        for digest in (image.digest, child.digest):
            assert (await there.get(manifest_path(digest))).status in (403, 404)
        assert (await there.get(f"/v2/{APP}/blobs/{child.layers[0].digest}")).status in (403, 404)


async def test_an_import_does_not_move_a_tag_to_what_is_not_signed(hub, trusting, key, tmp_path):
    """The tag stays where it was."""
    old = signed_alone(hub, key)
    async with trusting() as here:
        first = await exported(here, "app:1")
    hub.add_image(APP, "1", layers=[b"new"])
    async with trusting(match="other/*", store="another") as here:
        second = await exported(here, "app:1")
    async with trusting(**OFFLINE) as there:
        await sender(there)(first)
        sent = await sender(there)(second)
        assert [one.result for one in sent.images] == ["refused"]
        answer = await there.get(TAG)
        assert (answer.status, answer.body) == (200, old.raw)


async def test_another_key_refuses_what_was_imported(hub, trusting, key, tmp_path):
    """A bundle brings signatures, not verdicts."""
    signed_by_index(hub, key)
    async with trusting() as here:
        bundle = await exported(here, "app:1")
    other = Key.ecdsa().write(tmp_path, "other.pub")
    async with trusting(keys=[other], **OFFLINE) as there:
        sent = await sender(there)(bundle)
        assert [one.result for one in sent.images if not one.attached] == ["refused"]
        assert (await there.get(TAG)).status == 404
