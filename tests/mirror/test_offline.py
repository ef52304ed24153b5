"""A mirror that is offline: what is held is served for ever, nothing else, and nothing outside is asked."""

import asyncio
import json

import pytest

from tests.fakehub import Rule, Status
from tests.mirror.commands import command
from tests.mirror.syncing import Orders
from tests.support.names import APP, KIB, MIB, TAG, blob_path, content, manifest_path
from tests.support.trap import Trap
from tests.support.waiting import LIMIT, eventually

YEAR = 365 * 86400
OTHER = "library/other"


@pytest.fixture
async def trap():
    """The test fails if anybody connects to it."""
    async with Trap() as trap:
        yield trap
        assert trap.connections == 0


@pytest.fixture
def go_offline(mirror, trap):
    async def go(**changes):
        registries = {"docker.io": {"upstreams": [trap.url], "offline": True}, **changes.pop("registries", {})}
        await mirror.reload(registries=registries, **changes)

    return go


def said(answer):
    (error,) = json.loads(answer.body)["errors"]
    return f"{error['code']} {error['message']} {error['detail']}"


async def test_what_is_held_does_not_expire(hub, mirror, clock, go_offline):
    """Tags and digests are hits after years, in every form of request."""
    image = hub.add_image(APP, "1", [b"layer"])
    layer = f"/v2/{APP}/blobs/{image.layers[0].digest}"
    for path in (TAG, layer):
        assert (await mirror.get(path)).status == 200
    await eventually(lambda: mirror.holds(image.layers[0].digest), "the layer")
    await go_offline()
    clock.advance(20 * YEAR)
    for path in (TAG, f"/v2/{APP}/manifests/{image.digest}", layer):
        for method in ("GET", "HEAD"):
            answer = await mirror.get(path, method)
            assert (answer.status, answer.cache) == (200, "HIT")
    ranged = await mirror.get(layer, headers={"Range": "bytes=1-2"})
    assert (ranged.status, ranged.body) == (206, image.layers[0].data[1:3])


async def test_what_is_not_held(hub, mirror, go_offline):
    """It is a 404 with the code of the specification, which says why, and no wait."""
    image = hub.add_image(APP, "1", [b"one"])
    other = hub.add_image(APP, "2", [b"two"])
    assert (await mirror.get(TAG)).status == 200
    await go_offline()
    async with asyncio.timeout(LIMIT):
        for path, code in (
            (f"/v2/{APP}/manifests/2", "MANIFEST_UNKNOWN"),
            (f"/v2/{APP}/manifests/{other.digest}", "MANIFEST_UNKNOWN"),
            (f"/v2/{APP}/blobs/{image.layers[0].digest}", "BLOB_UNKNOWN"),
            (f"/v2/{OTHER}/tags/list", "NAME_UNKNOWN"),
            (f"/v2/{APP}/referrers/{image.digest}", "NAME_UNKNOWN"),
        ):
            answer = await mirror.get(path)
            assert answer.status == 404
            assert said(answer).startswith(code)
            assert "offline" in said(answer)
            assert "docker.io is offline" in said(answer)
        for path in (f"/v2/{APP}/manifests/2", f"/v2/{APP}/blobs/{image.layers[0].digest}"):
            assert (await mirror.head(path)).status == 404


async def test_rights_stay(hub, mirror, go_offline):
    """What one repository was granted is not served to another one, which cannot be granted it now."""
    image = hub.add_image(APP, "1", [b"one"])
    layer = f"blobs/{image.layers[0].digest}"
    assert (await mirror.get(f"/v2/{APP}/{layer}")).status == 200
    await go_offline()
    assert (await mirror.get(f"/v2/{APP}/{layer}")).cache == "HIT"
    assert (await mirror.get(f"/v2/{OTHER}/{layer}")).status == 404


async def test_lists_of_what_is_held(hub, mirror, go_offline):
    """Tags are those whose manifest is here, in pages; referrers are upstream's last list, without what is not here."""
    for tag in ("1", "2", "3", "4"):
        hub.add_image(APP, tag, [tag.encode()])
    for tag in ("3", "1", "2"):
        await mirror.get(f"/v2/{APP}/manifests/{tag}")
    await go_offline()
    answer = await mirror.get(f"/v2/{APP}/tags/list")
    assert json.loads(answer.body) == {"name": APP, "tags": ["1", "2", "3"]}
    first = await mirror.get(f"/v2/{APP}/tags/list?n=2")
    assert json.loads(first.body)["tags"] == ["1", "2"]
    following = first.headers["Link"].split(">")[0].lstrip("<")
    assert json.loads((await mirror.get(following)).body)["tags"] == ["3"]


async def test_referrers(hub, mirror, go_offline):
    """They are those of upstream's last list that are here."""
    image = hub.add_image(APP, "1", [b"one"])
    held, absent = (hub.add_referrer(APP, image.digest, payload=payload) for payload in (b"a", b"b"))
    path = f"/v2/{APP}/referrers/{image.digest}"
    listed = json.loads((await mirror.get(path)).body)["manifests"]
    assert {entry["digest"] for entry in listed} == {held, absent}
    await mirror.get(manifest_path(held))
    await go_offline()
    answer = await mirror.get(path)
    assert (answer.status, answer.cache) == (200, "HIT")
    assert [entry["digest"] for entry in json.loads(answer.body)["manifests"]] == [held]


async def test_leaving_it_is_a_reload(hub, mirror, go_offline):
    """No answer that was given offline is remembered."""
    hub.add_image(APP, "1", [b"one"])
    await go_offline()
    assert (await mirror.get(TAG)).status == 404
    await mirror.reload(registries={})
    assert (await mirror.get(TAG)).cache == "MISS"


async def test_the_whole_mirror(hub, mirror, trap, clock):
    """`offline: true` is about every registry, whatever its own key says."""
    hub.add_image(APP, "1", [b"one"])
    await mirror.get(TAG)
    await mirror.reload(offline=True, registries={"docker.io": {"upstreams": [trap.url]}, "ghcr.io": {"upstreams": [trap.url]}})
    clock.advance(YEAR)
    assert (await mirror.get(TAG)).cache == "HIT"
    assert (await mirror.get("/v2/ghcr.io/a/b/manifests/1")).status == 404


async def test_sync_and_warm_are_refused(hub, mirror, go_offline, tmp_path):
    """With the reason, by API and command; another registry is still synced."""
    hub.add_image(APP, "1", [b"one"])
    await mirror.get(TAG)
    await go_offline(registries={"ghcr.io": {"upstreams": [hub.url]}})
    orders = Orders(mirror)
    for path, body in (("warm", {"images": ["app:1"]}), ("sync", {"images": ["app"]})):
        status, answer = await orders.ask("POST", f"/api/v1/{path}", body)
        assert status == 409
        assert "docker.io" in answer["error"]
        assert "offline" in answer["error"]
    assert (await orders.ask("POST", "/api/v1/sync", {}))[0] == 202
    url = f"http://127.0.0.1:{mirror.admin_port}"
    status, _, complaint = await command("warm", "app:1", "--url", url, directory=tmp_path)
    assert status == 1
    assert complaint.endswith("app:1: docker.io is offline here, so nothing is fetched\n")


async def test_explain(hub, mirror, clock, go_offline, tmp_path):
    """It says that nothing expires, and why something is not there; `status` has no upstream any more."""
    hub.add_image(APP, "1", [b"one"])
    await mirror.get(TAG)
    await go_offline()
    clock.advance(YEAR)
    ask = Orders(mirror).ask
    _, state = await ask("GET", "/api/v1/status")
    assert (state["offline"], state["upstreams"]) == (["docker.io"], [])
    _, found = await ask("GET", "/api/v1/explain?image=app:1")
    assert (found["pull"]["outcome"], found["tag"]["ttl"], found["tag"]["ttl_rule"]) == ("HIT", None, "offline")
    _, absent = await ask("GET", "/api/v1/explain?image=app:2")
    assert absent["pull"]["outcome"] is None
    assert "docker.io is offline" in absent["pull"]["why"]
    url = f"http://127.0.0.1:{mirror.admin_port}"
    status, out, _ = await command("explain", "app:1", "--url", url, directory=tmp_path)
    assert status == 0
    assert "it does not expire, by offline" in out
    assert "not again while it is offline" in out


async def test_a_tag_that_upstream_denied(hub, mirror, clock, go_offline):
    """The denial is newer than what is held."""
    hub.add_image(APP, "1", [b"one"])
    assert (await mirror.get(TAG)).status == 200
    clock.advance(120)
    hub.script(Rule(kind="manifest", times=None), Status(403))
    assert (await mirror.get(TAG)).status == 404
    await go_offline()
    clock.advance(120)
    answer = await mirror.get(TAG)
    assert answer.status == 404
    assert "offline" in said(answer)


async def test_an_interrupted_download(hub, mirror, go_offline):
    """Its rest cannot come, and nobody waits for it."""
    image = hub.add_image(APP, "1", [content(3 * MIB)])
    path = blob_path(image.layers[0])
    gate = hub.gate(Rule(kind="blob"), MIB)
    async with mirror.session.get(mirror.url(path)) as response:
        await response.content.readexactly(KIB)
        await go_offline()
        gate.release()
        # The pull that was under way ends as it began.
        assert len(await response.read()) == 3 * MIB - KIB
    await eventually(lambda: mirror.holds(image.layers[0].digest), "the blob in the store")
    assert (await mirror.get(path)).cache == "HIT"
