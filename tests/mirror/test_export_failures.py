"""When there is no bundle, when one is cut, and how far each is."""

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
from tests.mirror.exports import AMD64, ARM64, NAME, S390X, Exports
from tests.mirror.syncing import Orders, pull
from tests.support.mirrors import SHARED, MirrorUnderTest
from tests.support.names import APP, MIB, content
from tests.support.waiting import LIMIT, eventually


@pytest.fixture
def exports(mirror):
    return Exports(mirror)


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
