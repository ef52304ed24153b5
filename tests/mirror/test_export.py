"""Bundles as the API writes them: what they hold."""

import json

import pytest

from mirror.core.digest import Digest
from tests.fakehub.catalog import layer
from tests.mirror.exports import AMD64, ARM64, NAME, S390X, Exports
from tests.mirror.syncing import pull
from tests.support.bundles import BundleRead
from tests.support.names import APP, manifest_path
from tests.support.trap import Trap


@pytest.fixture
def exports(mirror):
    return Exports(mirror)


def docker_row(image, *tags):
    paths = [f"blobs/{digest.digest.replace(':', '/')}" for digest in (image.config, *image.layers)]
    return {"Config": paths[0], "RepoTags": list(tags), "Layers": paths[1:]}


async def test_one_image(hub, mirror, exports):
    """What is not held is fetched first; the bundle has the image under its digest, for OCI tools and for Docker."""
    image = hub.add_image(APP, "1")
    bundle = await exports.bundle("app:1")
    assert bundle.images == {f"{NAME}:1": image.digest}
    assert bundle.docker == [docker_row(image, f"{NAME}:1")]
    assert bundle.blobs == {
        image.digest: image.raw,
        **{blob.digest: blob.data for blob in (image.config, *image.layers)},
    }
    assert bundle.names[-3:] == ["oci-layout", "index.json", "manifest.json"]
    assert mirror.holds(image.layers[0].digest)


async def test_shared_layers_and_several_tags(hub, exports):
    """A layer is written once, whatever images need it; an image with two tags is one for Docker."""
    shared = layer({"base": b"base"})
    one = hub.add_image(APP, "1", layers=[shared, layer({"1": b"1"})])
    two = hub.add_image("owner/other", "2", layers=[shared, layer({"2": b"2"})])
    hub.move_tag(APP, "latest", one.digest)
    bundle = await exports.bundle("app", "app:1", "owner/other:2", "app:1")
    assert bundle.images == {
        f"{NAME}:1": one.digest,
        f"{NAME}:latest": one.digest,
        "docker.io/owner/other:2": two.digest,
    }
    assert bundle.docker == [docker_row(one, f"{NAME}:1", f"{NAME}:latest"), docker_row(two, "docker.io/owner/other:2")]
    assert len(bundle.blobs) == 7


async def test_same_bytes(hub, exports):
    """The same images make the same tar, in whatever order they are named, and with what is held in between."""
    for tag in ("1", "2"):
        hub.add_image(APP, tag, platforms=[AMD64, ARM64])
    first = await exports.raw("app:1", "app:2")
    hub.add_image(APP, "3")
    await exports.raw("app:3")
    assert await exports.raw("app:2", "app:1") == first


async def test_members_say_nothing_of_here(hub, exports):
    """No time, owner or special file is in a bundle."""
    hub.add_image(APP, "1")
    for member in (await exports.bundle("app:1")).members:
        assert member.isreg()
        assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


async def test_held_platforms(hub, mirror, exports):
    """Without platforms those that are held are exported. The index keeps its digest, and what it lacks is named."""
    image = hub.add_image(APP, "1", platforms=[AMD64, ARM64, S390X])
    await pull(mirror, APP, "1", ARM64)
    await mirror.idle()
    bundle = await exports.bundle("app:1")
    arm, others = image.children[ARM64], [image.children[name].digest for name in (AMD64, S390X)]
    assert bundle.images == {f"{NAME}:1": image.digest}
    assert bundle.blobs.keys() == {image.digest, arm.digest, arm.config.digest, *(blob.digest for blob in arm.layers)}
    assert bundle.left_out(f"{NAME}:1") == others
    assert bundle.docker == [docker_row(arm, f"{NAME}:1")]
    assert not mirror.holds(others[0])


async def test_named_platforms(hub, exports):
    """What is named is fetched; Docker gets the first one."""
    image = hub.add_image(APP, "1", platforms=[AMD64, ARM64, S390X])
    bundle = await exports.bundle("app:1", platforms=[S390X, ARM64])
    assert bundle.left_out(f"{NAME}:1") == [image.children[AMD64].digest]
    assert image.children[ARM64].digest in bundle.blobs
    assert bundle.docker == [docker_row(image.children[S390X], f"{NAME}:1")]


async def test_platforms_of_each_image(hub, exports):
    """One bundle may have images of different platforms."""
    one = hub.add_image(APP, "1", platforms=[AMD64, ARM64])
    two = hub.add_image(APP, "2", platforms=[AMD64, ARM64])
    bundle = await exports.bundle({"image": "app:1", "platforms": [ARM64]}, "app:2", platforms=[AMD64])
    assert bundle.left_out(f"{NAME}:1") == [one.children[AMD64].digest]
    assert bundle.left_out(f"{NAME}:2") == [two.children[ARM64].digest]


async def test_nothing_held_of_an_index(hub, mirror, exports):
    """Of an index of which nothing is held the configured platforms are exported, or those that were held of its predecessor."""
    image = hub.add_image(APP, "1", platforms=[AMD64, ARM64])
    assert (await exports.bundle("app:1")).left_out(f"{NAME}:1") == [image.children[ARM64].digest]
    before = hub.add_image(APP, "2", platforms=[AMD64, S390X])
    await pull(mirror, APP, "2", S390X)
    moved = hub.add_image(APP, "2", layers=[layer({"2": b"moved"})], platforms=[AMD64, S390X])
    await mirror.idle()
    await mirror.reload(tags={"ttl": "0s"})
    bundle = await exports.bundle("app:2")
    assert (before.digest, bundle.images[f"{NAME}:2"]) == (before.digest, moved.digest)
    assert bundle.left_out(f"{NAME}:2") == [moved.children[AMD64].digest]


async def test_by_digest(hub, exports):
    """An image that is named by its digest has that in its name, and Docker gets it without a tag."""
    image = hub.add_image(APP, "1")
    bundle = await exports.bundle(f"app@{image.digest}")
    assert bundle.images == {f"{NAME}@{image.digest}": image.digest}
    assert bundle.docker == [docker_row(image)]


async def test_globs(hub, mirror, exports):
    """A glob means the complete images that are held; nothing is fetched for it."""
    held = [hub.add_image(APP, tag) for tag in ("1.0", "1.1", "2.0")]
    for tag in ("1.0", "1.1", "2.0"):
        await pull(mirror, APP, tag)
    half = hub.add_image(APP, "1.2")
    await mirror.get(manifest_path("1.2"))
    bundle = await exports.bundle("app:1.*")
    assert bundle.images == {f"{NAME}:1.0": held[0].digest, f"{NAME}:1.1": held[1].digest}
    assert len((await exports.bundle("*/*")).images) == 3
    assert not mirror.holds(half.layers[0].digest)
    assert await exports.refusal("app:9*") == (404, "app:9*: no complete image is held whose name matches")


async def test_signatures(hub, exports):
    """What is about an image or its platforms travels with it, under names that neither Docker nor containerd reads."""
    image = hub.add_image(APP, "1", platforms=[AMD64])
    child = image.children[AMD64]
    tags = {f"{digest.replace(':', '-')}{suffix}" for digest in (image.digest, child.digest) for suffix in (".sig", ".att")}
    signed = {f"{NAME}:{tag}": hub.add_image(APP, tag).digest for tag in tags}
    referrer = hub.add_referrer(APP, image.digest, payload=b"bundle")
    bundle = await exports.bundle("app:1")
    assert bundle.images == {f"{NAME}:1": image.digest}
    assert bundle.attached == {**signed, f"{NAME}@{referrer}": referrer}
    assert b"bundle" in bundle.blobs.values()
    assert len(bundle.docker) == 1
    assert set(bundle.attached.values()) <= bundle.blobs.keys()


async def test_fallback_tag(hub, exports):
    """Where a registry has no list of referrers, they are found by the tag in its place, and all of them travel."""
    hub.referrers = False
    image = hub.add_image(APP, "1")
    referrer = hub.add_referrer(APP, image.digest, payload=b"bundle")
    raw = hub.repositories[APP].manifests[referrer]
    entry = {"mediaType": raw.media_type, "digest": referrer, "size": len(raw.raw)}
    index = json.dumps({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [entry]})
    tag = image.digest.replace(":", "-")
    fallback = hub.add_manifest(APP, index.encode(), "application/vnd.oci.image.index.v1+json", tag)
    bundle = await exports.bundle("app:1")
    assert bundle.attached == {f"{NAME}:{tag}": fallback}
    assert {fallback, referrer} <= bundle.blobs.keys()
    assert b"bundle" in bundle.blobs.values()


async def test_excluded_layers(hub, mirror, exports):
    """Layers of an earlier bundle are neither fetched nor written; manifests and configs are written again."""
    base, own = layer({"base": b"base"}), layer({"own": b"own"})
    image = hub.add_image(APP, "1", layers=[base, own])
    before = hub.add_image(APP, "0", layers=[base])
    earlier = await exports.bundle("app:0")
    mirror.store.files.delete(Digest.parse(before.layers[0].digest))
    hub.reset_counters()
    bundle = await exports.bundle("app:1", exclude=[*earlier.blobs, image.config.digest])
    assert bundle.blobs.keys() == {image.digest, image.config.digest, image.layers[1].digest}
    assert bundle.left_out(f"{NAME}:1") == [image.layers[0].digest]
    assert bundle.docker == [docker_row(image, f"{NAME}:1")]
    assert not hub.find(kind="cdn", reference=image.layers[0].digest)


async def test_what_docker_does_not_load(hub, mirror, exports):
    """An artifact is in index.json alone, and the state says why."""
    image = hub.add_image(APP, "1")
    artifact = hub.add_referrer(APP, image.digest)
    async with exports.begin(f"app@{artifact}", headers={"X-Request-Id": "mine"}) as answer:
        bundle = BundleRead(await answer.read())
    assert bundle.docker == []
    assert bundle.images == {f"{NAME}@{artifact}": artifact}
    (found,) = (await exports.ended("mine"))["contents"]
    assert found["docker_obstacle"] == "it has no config of an image"


async def test_layers_in_zstd(hub, exports):
    """Docker 20.10 would stop at such an image, so Docker does not get it; the others are loaded."""
    image = hub.add_image(APP, "1")
    manifest = json.loads(image.raw)
    for entry in manifest["layers"]:
        entry["mediaType"] = "application/vnd.oci.image.layer.v1.tar+zstd"
    hub.add_manifest(APP, json.dumps(manifest).encode(), "application/vnd.oci.image.manifest.v1+json", "zstd")
    bundle = await exports.bundle("app:1", "app:zstd")
    assert bundle.images.keys() == {f"{NAME}:1", f"{NAME}:zstd"}
    assert bundle.docker == [docker_row(image, f"{NAME}:1")]


async def test_offline(hub, mirror, exports):
    """Offline, what is held is exported with its signatures, and what is missing is named; nobody is asked."""
    image = hub.add_image(APP, "1", platforms=[AMD64, ARM64])
    tag = f"{image.digest.replace(':', '-')}.sig"
    signature = hub.add_image(APP, tag)
    first = await exports.raw("app:1")
    hub.add_image(APP, "half")
    await mirror.get(manifest_path("half"))
    async with Trap() as trap:
        await mirror.reload(registries={"docker.io": {"upstreams": [trap.url], "offline": True}})
        assert await exports.raw("app:1") == first
        assert BundleRead(first).attached == {f"{NAME}:{tag}": signature.digest}
        for name in ("none", "half"):
            said = f"{NAME}:{name}: docker.io is offline here, so what is not held cannot be fetched"
            assert await exports.refusal("app:1", f"app:{name}") == (409, said)
        assert trap.connections == 0
    async with Trap() as trap:
        assert (await exports.refusal({"image": "app:1", "platforms": [ARM64]}))[0] == 409
