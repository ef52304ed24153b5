"""Tags stay in sync: what a run asks upstream, what it fetches, and when a tag switches."""

import asyncio

import pytest

from tests.fakehub import Rule, Status
from tests.mirror.syncing import Orders, pull
from tests.support.names import APP, tag_name
from tests.support.waiting import LIMIT

PLATFORMS = ["linux/amd64", "linux/arm64"]


@pytest.fixture
def orders(mirror):
    return Orders(mirror)


async def held(hub, mirror, tag="1", **image):
    """An image that a client has pulled."""
    made = hub.add_image(APP, tag, **image)
    await pull(mirror, APP, tag)
    await mirror.idle()
    hub.reset_counters()
    return made


async def test_unchanged_costs_a_head(hub, mirror, orders):
    """A tag that has not moved costs one HEAD, and is fresh afterwards."""
    image = await held(hub, mirror)
    before = mirror.store.index.tags.get(*tag_name("1"))
    done = await orders.sync("app:1")
    assert (done["result"], done["tags"], done["bytes_fetched"]) == ("completed", {"unchanged": 1}, 0)
    assert [seen.method for seen in hub.find(kind="manifest", status=200)] == ["HEAD"]
    after = mirror.store.index.tags.get(*tag_name("1"))
    assert after.checked > before.checked
    assert (after.pulled, after.changed, str(after.digest)) == (before.pulled, before.changed, image.digest)


async def test_moved_tag_is_fetched_ahead(hub, mirror, orders):
    """A moved tag's new image is complete before a client asks: its pull needs no GET upstream."""
    await held(hub, mirror, layers=[b"shared" * 1000, b"old"])
    new = hub.add_image(APP, "1", layers=[b"shared" * 1000, b"new layer"])
    done = await orders.sync("app")
    assert (done["result"], done["tags"]) == ("completed", {"moved": 1})
    hub.reset_counters()
    assert (await pull(mirror, APP, "1"))[0] == new.digest
    assert hub.count("GET") == 0


async def test_only_what_is_new_travels(hub, mirror, orders):
    """Of an image that shares all layers but one, that one and the small objects travel, by upstream's own count."""
    shared = [bytes([i]) * 50_000 for i in range(4)]
    await held(hub, mirror, layers=shared)
    new = hub.add_image(APP, "2", layers=[*shared, b"only this is new" * 1000])
    done = await orders.warm("app:2")
    assert done["result"] == "completed"
    small = len(new.raw) + new.config.size
    assert content_sent(hub) == done["bytes_fetched"] == small + 16_000
    assert done["bytes_held"] == 200_000


async def test_platforms_pulled_before(hub, mirror, orders):
    """Of an index, the platforms that clients have pulled are fetched ahead, and no other."""
    await held(hub, mirror, platforms=PLATFORMS)
    new = hub.add_image(APP, "1", layers=[b"new"], platforms=PLATFORMS)
    await orders.sync("app:1")
    fetched = {seen.reference for seen in hub.find("GET", "manifest", status=200)}
    assert fetched == {new.digest, new.children["linux/amd64"].digest}
    hub.reset_counters()
    await pull(mirror, APP, "1")
    assert hub.count("GET") == 0


async def test_single_manifest_becomes_an_index(hub, mirror, orders):
    """The platform of an image without an index is known from its config."""
    await held(hub, mirror)
    new = hub.add_image(APP, "1", layers=[b"new"], platforms=["linux/arm64", "linux/amd64"])
    await orders.sync("app:1")
    assert mirror.holds(new.children["linux/amd64"].digest)
    assert not mirror.holds(new.children["linux/arm64"].digest)


async def test_only_manifest_was_pulled(hub, mirror, orders):
    """What nobody has pulled whole is not fetched whole: the tag switches, and the layers come with the first pull."""
    hub.add_image(APP, "1", platforms=PLATFORMS)
    await mirror.get(f"/v2/{APP}/manifests/1")
    new = hub.add_image(APP, "1", layers=[b"new"], platforms=PLATFORMS)
    hub.reset_counters()
    done = await orders.sync("app:1")
    assert done["tags"] == {"moved": 1}
    assert hub.count("GET", "blob") == 0
    assert (await mirror.get(f"/v2/{APP}/manifests/1")).body == new.raw


async def test_switch_comes_last(hub, mirror, orders):
    """While the new image is being fetched, the tag names the old one; it switches when everything is there."""
    old = await held(hub, mirror)
    new = hub.add_image(APP, "1", layers=[b"x" * 300_000])
    gate = hub.gate(Rule(kind="cdn", times=None), after=1000)
    order = await orders.give("sync", images=["app:1"])
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    assert str(mirror.store.index.tags.get(*tag_name("1")).digest) == old.digest
    assert (await mirror.get(f"/v2/{APP}/manifests/1")).body == old.raw
    running = await orders.until(lambda state: state["running"] and state["running"][0]["images"])
    assert running["running"][0]["images"][0]["image"] == "docker.io/library/app:1"
    gate.release()
    assert (await orders.ended(order))["tags"] == {"moved": 1}
    assert (await mirror.get(f"/v2/{APP}/manifests/1")).body == new.raw


async def test_failed_fetch_keeps_the_old(hub, mirror, orders):
    """A new image that cannot be fetched whole does not take the old one's place."""
    old = await held(hub, mirror)
    hub.add_image(APP, "1", layers=[b"x" * 3000])
    hub.script(Rule(kind="blob", times=None), Status(404))
    done = await orders.sync("app:1")
    assert (done["result"], done["tags"]) == ("failed", {"failed": 1})
    assert list(done["problems"]) == ["docker.io/library/app:1"]
    assert str(mirror.store.index.tags.get(*tag_name("1")).digest) == old.digest


@pytest.mark.parametrize("keep", [True, False])
async def test_gone_upstream(hub, mirror, orders, keep):
    """A tag that upstream has deleted is dropped, or kept if that is configured."""
    hub_config = {"upstreams": [hub.url], "token_hosts": [hub.token_host], "keep_deleted": keep}
    await mirror.reload(registries={"docker.io": hub_config})
    await held(hub, mirror)
    hub.delete_tag(APP, "1")
    done = await orders.sync("app:1")
    assert (done["result"], done["tags"]) == ("completed", {"gone": 1})
    assert (mirror.store.index.tags.get(*tag_name("1")) is not None) == keep
    assert (await mirror.get(f"/v2/{APP}/manifests/1")).status == (200 if keep else 404)


async def test_not_held_here(hub, mirror, orders):
    """An order to look at what nobody has pulled says so, and asks upstream nothing."""
    done = await orders.sync("nothing/here:*")
    assert done["result"] == "failed"
    assert "warm" in done["problems"]["nothing/here:*"]
    assert hub.count() == 0


async def test_metrics(hub, mirror, orders):
    """Runs and tags are counted by result."""
    await held(hub, mirror)
    hub.add_image(APP, "1", layers=[b"new"])
    await orders.sync()
    assert await mirror.metric("sync_runs_total", result="completed") == 1
    assert await mirror.metric("sync_tags_total", result="moved") == 1
    assert await mirror.metric("sync_last_success_timestamp_seconds") == 0


# ---- warm


async def test_warm_for_a_platform(hub, mirror, orders):
    """An image is brought for the platforms that are named, and pulled without asking upstream for content."""
    hub.add_image(APP, "1", platforms=PLATFORMS)
    done = await orders.warm("app:1", platforms=["linux/arm64"])
    assert (done["result"], done["tags"]) == ("completed", {"moved": 1})
    hub.reset_counters()
    await pull(mirror, APP, "1", platform="linux/arm64")
    assert hub.count("GET") == 0
    again = await orders.warm("app:1", platforms=["linux/arm64"])
    assert (again["tags"], again["bytes_fetched"]) == ({"unchanged": 1}, 0)


async def test_warm_by_digest(hub, mirror, orders):
    """A digest can be warmed, too."""
    image = hub.add_image(APP, "1")
    done = await orders.warm(f"app@{image.digest}")
    assert done["result"] == "completed"
    hub.reset_counters()
    assert (await mirror.get(f"/v2/{APP}/blobs/{image.layers[0].digest}")).cache == "HIT"
    assert hub.count() == 0


async def test_warm_without_that_platform(hub, mirror, orders):
    """A platform that the image does not have is an error that names those it has."""
    hub.add_image(APP, "1", platforms=PLATFORMS)
    done = await orders.warm("app:1", platforms=["linux/s390x"])
    assert done["result"] == "failed"
    assert "linux/amd64, linux/arm64" in done["problems"]["docker.io/library/app:1"]


async def test_warm_without_an_index_for_another_platform(hub, mirror, orders):
    """Of an image without an index the config tells the platform; for another one no layer is fetched."""
    image = hub.add_image(APP, "1")
    done = await orders.warm("app:1", platforms=["linux/s390x"])
    assert (done["result"], done["problems"]) == (
        "failed",
        {"docker.io/library/app:1": "it is for linux/amd64, not for linux/s390x"},
    )
    assert not mirror.holds(image.layers[0].digest)
    assert (await orders.warm("app:1", platforms=["linux/s390x", "linux/amd64"]))["result"] == "completed"
    other = hub.add_image(APP, "2", layers=[b"other"])
    assert (await orders.warm(f"app@{other.digest}", platforms=["linux/s390x"]))["result"] == "completed"


async def test_warm_with_a_glob(hub, mirror, orders):
    """A glob over tags is resolved against upstream's list."""
    for tag in ("1.0", "1.1", "2.0", "latest"):
        hub.add_image(APP, tag)
    done = await orders.warm("app:1.*")
    assert {image["image"].rpartition(":")[2] for image in done["recent"]} == {"1.0", "1.1"}


async def test_warm_what_is_missing(hub, mirror, orders):
    """What is there of an image stays, and only what is missing is fetched."""
    image = await held(hub, mirror, layers=[b"one" * 1000, b"two" * 1000])
    mirror.blob_path(image.layers[1].digest).unlink()
    done = await orders.warm("app:1")
    assert (done["tags"], done["bytes_fetched"]) == ({"completed": 1}, 3000)
    assert await mirror.metric("sync_tags_total", result="unchanged") == 1
    mirror.blob_path(image.layers[0].digest).unlink()
    assert (await orders.warm(f"app@{image.digest}"))["tags"] == {"completed": 1}
    assert (await orders.warm(f"app@{image.digest}"))["tags"] == {"unchanged": 1}
    assert content_sent(hub) == 6000


async def test_warm_does_not_exist(hub, mirror, orders):
    """An image that upstream does not have is said to be gone, by name, and the order has failed."""
    hub.add_image(APP, "1")
    done = await orders.warm("app:2")
    assert (done["result"], done["tags"], list(done["problems"])) == ("failed", {"gone": 1}, ["docker.io/library/app:2"])


async def test_warm_what_is_denied(hub, mirror, orders):
    """The policy counts for orders, too, before upstream is asked."""
    config = {"upstreams": [hub.url], "token_hosts": [hub.token_host], "deny": ["library/app:*"]}
    await mirror.reload(registries={"docker.io": config})
    hub.add_image(APP, "1")
    done = await orders.warm("app:1")
    assert done["result"] == "failed"
    assert "deny" in done["problems"]["docker.io/library/app:1"]
    assert hub.count() == 0


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("sync", {"images": "app"}, "images: has to be a list"),
        ("sync", {"images": [7]}, "images: has to be a list"),
        ("sync", {"images": ["A B"]}, "A B"),
        ("sync", {"image": ["app"]}, "image: there is no such key"),
        ("sync", [], "object"),
        ("warm", {}, "images: is required"),
        ("warm", {"images": []}, "at least one"),
        ("warm", {"images": ["quay.io/a/b"]}, "not mirrored here"),
        ("warm", {"images": ["app"], "platforms": ["amd64"]}, "platforms: invalid platform"),
        ("warm", {"images": ["*/app"]}, "glob"),
    ],
)
async def test_bad_orders(hub, mirror, orders, path, body, said):
    """What cannot be understood is refused with the key's name, and nothing is ordered."""
    status, answer = await orders.ask("POST", f"/api/v1/{path}", body)
    assert status == 400
    assert said in answer["error"]
    assert (await orders.state())["waiting"] == []


async def test_unknown_order(mirror, orders):
    status, answer = await orders.ask("GET", "/api/v1/sync/none")
    assert (status, answer["error"]) == (404, "there is no such order")


def content_sent(hub):
    """Bytes of manifests and blobs that upstream has sent: neither challenges nor redirects."""
    content = (seen for seen in hub.requests if seen.kind in ("manifest", "blob") and seen.host != "token" and seen.status == 200)
    return sum(seen.body_bytes_sent for seen in content)
