"""Bundles that a mirror takes: what clients and the operator see afterwards."""

import gzip
import json

import pytest
from backports import zstd

from tests.support.names import ABSENT, blob_path, manifest_path, sha256
from tests.transfer.bundles import (
    ATTACHED,
    OCI_MANIFEST,
    REF,
    Image,
    Index,
    bundle,
    contents,
    crane,
    descriptor,
    docker_save,
    layout,
    named,
)

APP = "docker.io/library/app"


@pytest.fixture
async def offline(mirror):
    """The mirror asks nobody; the hub would count it."""
    await mirror.reload(offline=True)
    yield mirror
    assert not mirror.hub.count()


async def pulled(mirror, image, reference, repository="library/app"):
    """Pull an image of one platform, and compare every byte."""
    answer = await mirror.get(manifest_path(reference, repository))
    assert (answer.status, answer.body, answer.cache) == (200, image.raw, "HIT")
    for blob in image.blobs:
        answer = await mirror.get(blob_path(sha256(blob), repository))
        assert (answer.status, answer.body) == (200, blob)


@pytest.mark.parametrize("compress", [bytes, gzip.compress, zstd.compress])
@pytest.mark.parametrize("index_first", [False, True])
async def test_bundle_is_pulled_as_it_was(offline, send, compress, index_first):
    """In any order of its members, and compressed or not."""
    image = Image(b"one", b"two")
    data = layout([named(image, f"{APP}:1")], contents(image), index_first=index_first)
    sent = await send(compress(data))
    assert sent.status == 200
    assert [(one.name, one.result, one.digest) for one in sent.images] == [(f"{APP}:1", "imported", image.digest)]
    await pulled(offline, image, "1")
    await pulled(offline, image, image.digest)
    assert sent.answer["bytes"] == sum(map(len, contents(image)))


async def test_what_is_imported_is_readable_in_its_repository_only(offline, send):
    image = Image(b"one")
    await send(bundle(f"{APP}:1", image))
    for path in (manifest_path(image.digest, "library/other"), blob_path(sha256(image.config), "library/other")):
        assert (await offline.get(path)).status == 404


async def test_an_image_without_a_name_gets_one(offline, send):
    image = Image(b"one")
    data = layout([image.descriptor()], contents(image))
    sent = await send(data)
    assert [(one.result, one.digest) for one in sent.images] == [("refused", image.digest)]
    assert "--as" in sent.images[0].cause
    assert (await offline.get(manifest_path(image.digest))).status == 404
    assert [one.name for one in (await send(data, "app:1")).images] == [f"{APP}:1"]
    await pulled(offline, image, "1")


async def test_a_tag_without_a_repository_is_no_name(offline, send):
    """skopeo writes what its user typed; with a name for the repository the tag counts."""
    image = Image(b"one")
    data = layout([image.descriptor(annotations={REF: "3.2"})], contents(image))
    assert (await send(data)).images[0].result == "refused"
    assert (await send(data, "app")).images[0].name == f"{APP}:3.2"
    await pulled(offline, image, "3.2")


async def test_a_name_for_one_of_several_images_is_refused(offline, send):
    first, second = Image(b"one"), Image(b"two")
    sent = await send(layout([first.descriptor(), second.descriptor()], contents(first, second)), "app:1")
    assert (sent.status, "2 images" in sent.error) == (400, True)


async def test_a_moved_tag_is_said(offline, send):
    old, new = Image(b"old"), Image(b"new")
    await send(bundle(f"{APP}:1", old))
    moved = (await send(bundle(f"{APP}:1", new))).images[0]
    assert (moved.result, moved.old, moved.digest) == ("moved", old.digest, new.digest)
    await pulled(offline, new, "1")
    again = await send(bundle(f"{APP}:1", new))
    assert again.images[0].result == "unchanged"
    assert (again.answer["bytes"], again.answer["bytes_held"]) == (0, sum(map(len, contents(new))))


async def test_an_index_with_some_of_its_platforms(offline, send):
    """It stays an index: what is left out is known, and the digest is the registry's."""
    amd, arm = Image(b"amd"), Image(b"arm", architecture="arm64")
    index = Index(amd, arm)
    sent = await send(layout([named(index, f"{APP}:1")], [*contents(amd), index.raw]))
    assert (sent.images[0].platforms, sent.images[0].left_out) == (["linux/amd64"], ["linux/arm64"])
    assert (await offline.get(manifest_path("1"))).body == index.raw
    await pulled(offline, amd, amd.digest)
    assert (await offline.get(manifest_path(arm.digest))).status == 404


async def test_a_platform_that_is_not_whole_is_no_platform_left_out(offline, send):
    amd, arm = Image(b"amd"), Image(b"arm", architecture="arm64")
    index = Index(amd, arm)
    sent = await send(layout([named(index, f"{APP}:1")], [*contents(amd), arm.raw, index.raw]))
    assert sent.images[0].result == "refused"
    assert sha256(arm.config) in sent.images[0].cause
    assert (await offline.get(manifest_path("1"))).status == 404


async def test_a_bundle_since_another_one(offline, send):
    """What it leaves out must be held, and is then granted to the new image, too."""
    old, new = Image(b"base", b"old"), Image(b"base", b"new")
    rest = [blob for blob in contents(new) if blob not in contents(old)]
    data = layout([named(new, "docker.io/library/other:2")], rest)
    refused = (await send(data)).images[0]
    assert refused.result == "refused"
    assert sha256(new.layers[0]) in refused.cause
    await send(bundle(f"{APP}:1", old))
    assert (await send(data)).images[0].result == "imported"
    await pulled(offline, new, "2", "library/other")


async def test_content_of_another_private_repository_is_not_held(mirror, send, tmp_path):
    """With an account, a bundle that names a digest opens nothing: only what its own repository holds may be left out."""
    password = tmp_path / "password"
    password.write_text("secret")
    account = {"upstreams": [mirror.hub.url], "username": "robot", "password_file": str(password)}
    await mirror.reload(offline=True, registries={"docker.io": account})
    old, new = Image(b"base", b"old"), Image(b"base", b"new")
    rest = [blob for blob in contents(new) if blob not in contents(old)]
    await send(bundle("docker.io/library/private:1", old))
    (refused,) = (await send(layout([named(new, f"{APP}:2")], rest))).images
    assert (refused.result, sha256(new.layers[0]) in refused.cause) == ("refused", True)
    assert (await mirror.get(blob_path(sha256(new.layers[0])))).status == 404
    assert (await send(layout([named(new, "docker.io/library/private:2")], rest))).images[0].result == "imported"


async def test_one_damaged_image_of_two(offline, send):
    """The whole one is tagged, the other one is named with what is wrong."""
    good, bad = Image(b"good"), Image(b"bad")
    blobs = contents(good, bad)
    data = layout([named(bad, f"{APP}:bad"), named(good, f"{APP}:good")], blobs).replace(bad.config, bad.config[::-1])
    sent = await send(data)
    assert [(one.name, one.result) for one in sent.images] == [(f"{APP}:bad", "refused"), (f"{APP}:good", "imported")]
    assert sha256(bad.config)[7:] in sent.images[0].cause
    await pulled(offline, good, "good")
    assert (await offline.get(manifest_path("bad"))).status == 404
    assert not offline.holds(bad.digest)


async def test_registries_and_policies(offline, send):
    image = Image(b"one")
    sent = (await send(bundle("quay.io/library/app:1", image))).images[0]
    assert (sent.result, "quay.io is not mirrored here" in sent.cause) == ("refused", True)
    await offline.reload(registries={"docker.io": {"upstreams": [offline.hub.url], "deny": ["library/app:1"]}})
    sent = (await send(bundle(f"{APP}:1", image))).images[0]
    assert (sent.result, "deny: library/app:1" in sent.cause) == ("refused", True)


async def test_images_of_old_docker(offline, send):
    """A manifest is made; the layers stay as they are, and what was compared is said."""
    sent = await send(docker_save("app:1", "app:2", layers=(b"one", b"two", b"one")))
    assert [(one.name, one.result) for one in sent.images] == [(f"{APP}:1", "imported"), (f"{APP}:2", "imported")]
    assert "made one" in sent.images[0].note
    manifest = json.loads((await offline.get(manifest_path("1"))).body)
    assert [layer["digest"] for layer in manifest["layers"]] == [sha256(b"one"), sha256(b"two"), sha256(b"one")]
    assert (await offline.get(blob_path(manifest["layers"][1]["digest"]))).body == b"two"
    assert (await offline.head(manifest_path("2"))).headers["Docker-Content-Digest"] == sent.images[1].digest
    # The same content has the same manifest.
    assert (await send(docker_save("app:1", layers=(b"one", b"two", b"one")))).images[0].result == "unchanged"


async def test_layers_of_old_docker_are_compared_with_the_configuration(offline, send):
    sent = await send(docker_save("app:1", diff_ids=[ABSENT, sha256(b"two")]))
    assert sent.images[0].result == "refused"
    assert sha256(b"one") in sent.images[0].cause
    assert (await offline.get(manifest_path("1"))).status == 404


async def test_archive_of_go_containerregistry(offline, send):
    """Its layers are compressed; what they hold is compared with the configuration."""
    sent = await send(crane("app:1", b"one", b"two"))
    assert (sent.images[0].name, sent.images[0].result) == (f"{APP}:1", "imported")
    manifest = json.loads((await offline.get(manifest_path("1"))).body)
    assert [layer["mediaType"].rpartition(".")[2] for layer in manifest["layers"]] == ["gzip", "gzip"]
    assert gzip.decompress((await offline.get(blob_path(manifest["layers"][1]["digest"]))).body) == b"two"


async def test_signatures_and_referrers(offline, send):
    """They travel without a name of their own, and are recorded as pulled ones are."""
    image = Image(b"one")
    subject = descriptor(image.raw, OCI_MANIFEST)
    referrer = Image(b"sbom", subject=subject, artifactType="application/spdx+json")
    signature, tag = Image(b"signature"), f"sha256-{image.digest[7:]}.sig"
    entries = [
        referrer.descriptor(annotations={ATTACHED: f"{APP}@{referrer.digest}"}),
        signature.descriptor(annotations={ATTACHED: f"{APP}:{tag}"}),
        named(image, f"{APP}:1"),
    ]
    sent = await send(layout(entries, contents(image, referrer, signature)))
    assert [(one.result, one.attached) for one in sent.images] == [("imported", True), ("imported", True), ("imported", False)]
    await pulled(offline, signature, tag)
    listed = json.loads((await offline.get(f"/v2/library/app/referrers/{image.digest}")).body)["manifests"]
    assert [(entry["digest"], entry["artifactType"]) for entry in listed] == [(referrer.digest, "application/spdx+json")]
    await pulled(offline, referrer, referrer.digest)


async def test_signature_of_an_image_that_is_refused(offline, send):
    image, signature = Image(b"one"), Image(b"signature")
    tag = f"sha256-{image.digest[7:]}.sig"
    entries = [signature.descriptor(annotations={ATTACHED: f"{APP}:{tag}"}), named(image, f"{APP}:1")]
    sent = await send(layout(entries, contents(signature)))
    assert [one.result for one in sent.images] == ["refused", "refused"]
    assert (await offline.get(manifest_path(tag))).status == 404


@pytest.mark.parametrize("given", [None, "acme/prod"])
@pytest.mark.parametrize("by_tag", [True, False])
async def test_what_calls_itself_a_signature_and_is_none(offline, send, by_tag, given):
    """It would come without a line for the operator, and could move any tag."""
    image, other = Image(b"one"), Image(b"other")
    await send(bundle(f"{APP}:latest", image))
    entries = [
        named(image, f"{APP}:1"),
        other.descriptor(annotations={ATTACHED: f"{APP}:latest" if by_tag else f"{APP}@{other.digest}"}),
    ]
    sent = await send(layout(entries, contents(image, other)), given)
    assert [one.result for one in sent.images] == ["imported", "refused"]
    assert "not about any other manifest" in sent.images[1].cause
    await pulled(offline, image, "latest")
    assert (await offline.get(manifest_path("latest", "acme/prod"))).status == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "application/x-tar", "Origin": "http://evil.example"}, 403),
        ({"Content-Type": "application/x-tar"}, 200),
    ],
)
async def test_what_a_web_page_can_send(offline, headers, status):
    """A page of another origin can neither name the type of a bundle nor hide where it comes from."""
    url = f"http://127.0.0.1:{offline.admin_port}/api/v1/import"
    async with offline.session.post(url, data=bundle(f"{APP}:1", Image(b"one")), headers=headers) as answer:
        assert answer.status == status
    assert offline.store.index.tags.is_empty() is (status != 200)
