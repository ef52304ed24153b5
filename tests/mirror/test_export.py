"""Bundles as the API writes them: what they hold, and when there is none."""

import asyncio
import contextlib
import json

import aiohttp
import pytest
import pytest_asyncio

from mirror.core.counts import Total
from mirror.core.digest import Digest
from mirror.transfer.exporter import MAX_EXPORTS
from tests.fakehub import Rule, Status
from tests.fakehub.catalog import layer
from tests.mirror.syncing import Orders, pull
from tests.support.bundles import BundleRead
from tests.support.mirrors import SHARED, MirrorUnderTest
from tests.support.names import APP, MIB, content, manifest_path
from tests.support.trap import Trap
from tests.support.waiting import LIMIT, eventually

NAME = f"docker.io/{APP}"
AMD64, ARM64, S390X = "linux/amd64", "linux/arm64", "linux/s390x"


class Exports:
    """Asks a mirror for bundles."""

    def __init__(self, mirror):
        self._mirror = mirror
        self.url = f"http://127.0.0.1:{mirror.admin_port}/api/v1/export"

    def begin(self, *images, headers=None, **body):
        return self._mirror.session.post(self.url, json={"images": list(images), **body}, headers=headers)

    async def raw(self, *images, **body):
        """The bytes of a bundle."""
        async with self.begin(*images, **body) as answer:
            assert answer.status == 200, await answer.text()
            assert answer.headers["Content-Type"] == "application/x-tar"
            raw = await answer.read()
            assert len(raw) == int(answer.headers["Content-Length"])
            return raw

    async def bundle(self, *images, **body):
        return BundleRead(await self.raw(*images, **body))

    async def refusal(self, *images, **body):
        """The status and the text of an error."""
        async with self.begin(*images, **body) as answer:
            return answer.status, (await answer.json())["error"]

    async def ended(self, name):
        """The state of an export that has ended."""

        async def state():
            async with self._mirror.session.get(f"{self.url}/{name}") as answer:
                return await answer.json() if answer.status == 200 else {}

        return await eventually(state, "its end", holds=lambda row: row.get("phase") == "ended")


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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def refusing_mirror(shared_hub, tmp_path_factory):
    """A mirror of images that cannot be exported as they are asked for."""
    shared_hub.add_image(APP, "index", platforms=[AMD64, ARM64])
    shared_hub.add_image(APP, "single")
    shared_hub.add_image("library/denied", "latest")
    entry = {"upstreams": [shared_hub.url], "token_hosts": [shared_hub.token_host], "deny": ["library/denied"]}
    store = tmp_path_factory.mktemp("refusing") / "store"
    async with MirrorUnderTest(shared_hub, store, registries={"docker.io": entry}) as mirror:
        yield mirror


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"images": []}, 400, "images: has to name from 1 to 10000"),
        ({"images": [1]}, 400, "images: each has to be a text, or an object with `image` and `platforms`"),
        ({"images": [{"image": "app", "platform": AMD64}]}, 400, "images: each has to be a text, or an object"),
        ({"images": ["app\ud800"]}, 400, "images: 'app\\ud800' is no name of an image"),
        ({"images": ["a" * 513]}, 400, "is no name of an image"),
        ({"images": ["UPPER"]}, 400, "UPPER: invalid name 'UPPER'"),
        ({"images": ["app@sha256:*"]}, 400, "a digest cannot be a glob"),
        ({"images": ["ghcr.io/owner/app"]}, 400, "ghcr.io/owner/app: invalid registry 'ghcr.io': not mirrored here"),
        ({"images": ["app"], "platforms": ["arm64"]}, 400, "platforms: invalid platform 'arm64'"),
        ({"images": ["app"], "platforms": AMD64}, 400, "platforms: has to be a list"),
        ({"images": ["app"], "exclude": ["sha256:1"]}, 400, "exclude: invalid digest 'sha256:1'"),
        ({"images": ["app"], "output": "x"}, 400, "output: there is no such key"),
        ({"images": ["app:none", "app:void"]}, 404, f"{NAME}:none: upstream "),
        ({"images": ["app:index"], "platforms": [S390X]}, 404, f"{NAME}:index: none of its manifests is for {S390X}; there are"),
        ({"images": ["app:single"], "platforms": [S390X]}, 404, f"{NAME}:single: it is for {AMD64}, not for {S390X}"),
        ({"images": ["denied"]}, 403, "docker.io/library/denied:latest: docker.io/library/denied latest may not be pulled"),
    ],
)
@SHARED
async def test_refused(refusing_mirror, body, status, said):
    """What cannot be exported is named, before the first byte; of several images each."""
    found = await Exports(refusing_mirror).refusal(*body["images"], **{key: body[key] for key in body if key != "images"})
    assert (found[0], said in found[1]) == (status, True), found
    assert len(found[1].splitlines()) == max(1, len(body["images"]))


async def test_schema1(hub, exports):
    """An image in Docker's oldest format cannot be kept, so it cannot be exported, and that is said."""
    hub.add_manifest(
        APP,
        json.dumps({"schemaVersion": 1, "name": APP, "tag": "old", "fsLayers": [], "history": []}).encode(),
        "application/vnd.docker.distribution.manifest.v1+json",
        "old",
    )
    status, said = await exports.refusal("app:old")
    assert status == 400
    assert said.startswith(f"{NAME}:old: ")
    assert "schema 1" in said


async def test_upstream_is_out(hub, mirror, exports):
    """What is held is exported while upstream is out of order; what is not is refused for now."""
    image = hub.add_image(APP, "1")
    await pull(mirror, APP, "1")
    await mirror.reload(tags={"ttl": "0s"})
    hub.script(Rule(times=None), Status(503))
    assert (await exports.bundle("app:1")).images == {f"{NAME}:1": image.digest}
    assert (await exports.refusal("app:2"))[0] == 503


@contextlib.asynccontextmanager
async def slow_reader(hub, exports):
    """A client that has read only the first bytes of a bundle whose layers do not fit into any buffer.

    Returns the image, the whole bundle, what the client has read, and its response.
    """
    image = hub.add_image(APP, "1", layers=[content(16 * MIB), b"the last"])
    raw = await exports.raw("app:1")
    async with exports.begin("app:1", headers={"X-Request-Id": "slow"}) as answer:
        yield image, raw, await answer.content.readexactly(1000), answer


async def test_purged_in_the_middle(hub, mirror, exports):
    """An export goes on with what it has pinned, whatever becomes of the store."""
    async with slow_reader(hub, exports) as (image, raw, first, answer):
        status, gone = await Orders(mirror).ask("POST", "/api/v1/purge", {"match": "*/*"})
        assert (status, gone["tags"]) == (200, 1)
        assert not mirror.holds(image.layers[1].digest)
        assert first + await answer.read() == raw


async def test_lost_in_the_middle(hub, mirror, exports, monkeypatch):
    """A blob that could not be pinned and has gone ends the bundle short, and the export names it and its image."""
    monkeypatch.setattr("mirror.transfer.pins._MAX_PINS", 2)
    async with slow_reader(hub, exports) as (image, raw, _, answer):
        lost = image.layers[1].digest
        mirror.store.files.delete(Digest.parse(lost))
        with pytest.raises(aiohttp.ClientPayloadError):
            await answer.read()
    state = await exports.ended("slow")
    assert (state["result"], state["cause"]) == ("failed", f"{NAME}:1: {lost} has left the store meanwhile")
    assert state["bytes"] < len(raw)


async def test_client_leaves(hub, mirror, exports):
    """A client that has gone ends its export, and makes room for another."""
    async with slow_reader(hub, exports) as (*_, answer):
        answer.close()
        state = await exports.ended("slow")
        assert (state["result"], state["phase"], state["cause"]) == ("cut", "ended", "the client has disconnected")
        assert 0 < state["bytes"] < state["size"]


async def test_client_leaves_while_it_waits(hub, mirror, exports):
    """Its export ends; the download goes on, as any does."""
    image = hub.add_image(APP, "1", layers=[content(MIB)])
    gate = hub.gate(Rule(kind="cdn", times=None), after=1000)
    waiting = asyncio.create_task(exports.raw("app:1"))
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await eventually(lambda: mirror.services.group.counts.count(Total.EXPORTS).total == 0, "its end")
    gate.release()
    await mirror.idle()
    assert mirror.holds(image.layers[0].digest)


async def test_as_many_as_allowed(hub, mirror, exports):
    """More exports than the limit are refused, and said to be possible later."""
    hub.add_image(APP, "1", layers=[content(MIB)])
    gate = hub.gate(Rule(kind="cdn", times=None), after=1000)
    waiting = [asyncio.create_task(exports.raw("app:1")) for _ in range(MAX_EXPORTS)]
    await eventually(lambda: mirror.services.group.counts.count(Total.EXPORTS).total == MAX_EXPORTS, "all of them")
    async with exports.begin("app:1") as answer:
        assert (answer.status, answer.headers["Retry-After"]) == (429, "10")
    gate.release()
    first, *others = await asyncio.gather(*waiting)
    assert all(other == first for other in others)
    await exports.raw("app:1")
    assert not mirror.services.group.counts.count(Total.EXPORTS).total


async def test_states(hub, mirror, exports, log):
    """An export is listed with what it does and has done, and begins with an audit line."""
    image = hub.add_image(APP, "1", layers=[content(MIB)], platforms=[AMD64, ARM64])
    hub.add_referrer(APP, image.digest)
    gate = hub.gate(Rule(kind="cdn", times=None), after=1000)
    waiting = asyncio.create_task(exports.raw("app:1"))

    async def running():
        async with mirror.session.get(exports.url) as answer:
            return (await answer.json())["exports"]

    (state,) = await eventually(running, "its state", holds=lambda rows: rows and rows[0]["phase"] == "fetching")
    assert (state["result"], state["image"], state["total"], state["images"]) == ("running", f"{NAME}:1", 1, ["app:1"])
    gate.release()
    size = len(await waiting)
    state = await exports.ended(state["name"])
    assert (state["result"], state["bytes"], state["size"], state["cause"]) == ("completed", size, size, None)
    (found,) = state["contents"]
    assert found == {
        "image": f"{NAME}:1",
        "digest": image.digest,
        "platforms": [AMD64],
        "left_out": [ARM64],
        "attached": 1,
        "docker_obstacle": None,
    }
    (line,) = [event for event in log if event["event"] == "audit"]
    assert (line["action"], line["images"], line["client"]) == ("export", ["app:1"], "127.0.0.1")


async def test_larger_than_the_store(hub, tmp_path):
    """All of a bundle has to be in the store at once; one that cannot be is refused."""
    for tag in ("1", "2", "3"):
        hub.add_image(APP, tag, layers=[content(3 * MIB, tag)])
    storage = {"path": str(tmp_path / "store"), "max_size": "8MiB"}
    async with MirrorUnderTest(hub, tmp_path / "store", storage=storage) as mirror:
        exports = Exports(mirror)
        await exports.raw("app:1")
        status, said = await exports.refusal("app:1", "app:2", "app:3")
        assert status == 503
        assert said.startswith(f"{NAME}:3: ")
        assert said.endswith("all of a bundle has to be in the store at once, and storage.max_size is 8388608 bytes")
