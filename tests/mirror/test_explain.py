"""`explain` says what is held and what a pull would do, and the pull then does it."""

import json
from urllib.parse import quote

import pytest

from tests.fakehub import Rule, Status
from tests.mirror.commands import command
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, TAG


async def explain(mirror, image="app:1"):
    async with mirror.session.get(f"http://127.0.0.1:{mirror.admin_port}/api/v1/explain?image={quote(image)}") as response:
        return response.status, await response.json()


async def explained(mirror, image="app:1"):
    status, answer = await explain(mirror, image)
    assert status == 200, answer
    return answer


async def pull_all(mirror, image):
    await mirror.get(TAG)
    for blob in [image.config, *image.layers]:
        await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")
    await mirror.idle()


async def test_nothing_held(hub, mirror):
    """An unknown tag would be fetched; asking about it costs upstream nothing, and changes nothing."""
    hub.add_image(APP, "1")
    answer = await explained(mirror)
    assert (answer["image"], answer["held"], answer["digest"], answer["platforms"]) == (f"docker.io/{APP}:1", "no", None, [])
    assert (answer["pull"]["action"], answer["pull"]["outcome"]) == ("fetch", "MISS")
    assert (answer["pulled"], answer["last"], hub.count()) == (None, None, 0)
    assert (await mirror.get(TAG)).cache == answer["pull"]["outcome"]


async def test_held_in_part_and_complete(hub, mirror):
    """Each blob is said to be held or missing, and the sums are those of the image."""
    image = hub.add_image(APP, "1")
    await mirror.get(TAG)
    await mirror.get(f"/v2/{APP}/blobs/{image.config.digest}")
    await mirror.idle()
    answer = await explained(mirror)
    (manifest,) = answer["platforms"]
    assert (answer["held"], answer["digest"]) == ("partial", str(image.digest))
    assert {blob["digest"]: blob["state"] for blob in manifest["blobs"]} == {
        str(image.config.digest): "held", **{str(layer.digest): "missing" for layer in image.layers},
    }  # fmt: skip
    assert manifest["bytes"] == image.config.size
    await pull_all(mirror, image)
    answer = await explained(mirror)
    assert (answer["held"], answer["platforms"][0]["bytes"]) == ("complete", answer["platforms"][0]["size"])


async def test_what_a_pull_does(hub, mirror, clock):
    """Fresh, due, and in an outage: the outcome that is foretold is the one that the next pull has."""
    image = hub.add_image(APP, "1")
    await pull_all(mirror, image)
    answer = await explained(mirror)
    assert (answer["pull"]["outcome"], answer["tag"]["fresh_until"] > clock()) == ("HIT", True)
    assert (answer["last"]["outcome"], answer["last"]["when"]) == ("MISS", answer["pulled"])
    assert (await mirror.get(TAG)).cache == "HIT"
    assert (await explained(mirror))["last"]["outcome"] == "HIT"
    clock.advance(61)
    answer = await explained(mirror)
    assert (answer["pull"]["action"], answer["pull"]["outcome"], answer["tag"]["fresh_until"]) == ("check", "REVALIDATED", None)
    assert answer["pull"]["stale_until"] == pytest.approx(answer["tag"]["checked"] + 30 * 86400)
    assert (await mirror.get(TAG)).cache == "REVALIDATED"
    clock.advance(61)
    hub.script(Rule(kind="manifest", times=None), Status(404))
    assert (await mirror.get(TAG)).status == 404
    answer = await explained(mirror)
    assert (answer["pull"]["action"], answer["pull"]["outcome"]) == ("refuse", None)
    assert "does not have" in answer["pull"]["why"]


async def test_outage(hub, mirror, clock):
    """Once upstream is known to be out of order, a held image would be stale, and one that is not held has to wait."""
    image = hub.add_image(APP, "1")
    await pull_all(mirror, image)
    clock.advance(61)
    hub.script(Rule(kind="manifest", times=None), Status(503))
    hub.script(Rule(kind="ping", times=None, challenge=True), Status(503))
    # A clock that stands still: no pause ends between what is compared.
    (health,) = (upstream.health for upstream in mirror.graph.registries["docker.io"].upstreams)
    now = clock.monotonic()
    health.clock = lambda: now
    while (answer := await explained(mirror))["pull"]["outcome"] != "STALE":
        assert (await mirror.get(TAG)).cache == "STALE"
        clock.advance(2)
        now += 2
    assert (answer["last"]["outcome"], "5xx" in answer["last"]["cause"]) == ("STALE", True)
    assert [upstream["next"] for upstream in answer["upstreams"]] == [False]
    assert "no upstream may be asked now" in (await explained(mirror, "other:1"))["pull"]["why"]


async def test_digest(hub, mirror):
    """A digest never expires, and has no tag's rules."""
    image = hub.add_image(APP, "1")
    name = f"app@{image.digest}"
    assert (await explained(mirror, name))["pull"]["outcome"] == "MISS"
    await pull_all(mirror, image)
    answer = await explained(mirror, name)
    assert (answer["tag"], answer["held"], answer["pull"]["outcome"]) == (None, "complete", "HIT")
    assert answer["pulled"] is not None
    other = await explained(mirror, f"elsewhere@{image.digest}")
    assert (other["pull"]["action"], other["pull"]["outcome"]) == ("check", "REVALIDATED")


async def test_index(hub, mirror):
    """The platforms of an index are named; one that nobody has pulled is not held, and hides no complete one."""
    index = hub.add_image(APP, "1", platforms=["linux/amd64", "linux/arm64"])
    await mirror.get(TAG)
    await mirror.idle()
    answer = await explained(mirror)
    assert [manifest["platform"] for manifest in answer["platforms"]] == ["linux/amd64", "linux/arm64"]
    assert [manifest["held"] for manifest in answer["platforms"]] == [False, False]
    assert answer["held"] == "no"
    child = index.children["linux/arm64"]
    await mirror.get(f"/v2/{APP}/manifests/{child.digest}")
    for blob in [child.config, *child.layers]:
        await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")
    await mirror.idle()
    answer = await explained(mirror)
    assert ([manifest["complete"] for manifest in answer["platforms"]], answer["held"]) == ([False, True], "complete")


async def test_rules(hub, tmp_path):
    """The rule that sets the ttl and the one that decides about the pull are named."""
    hub.add_image(APP, "1")
    registry = {
        "allow": ["library/*"],
        "deny": ["*:secret"],
        "tags": [{"match": "library/app:1", "ttl": "7d", "pin": True}],
        "upstreams": [hub.url],
        "token_hosts": [hub.token_host],
    }
    async with MirrorUnderTest(hub, tmp_path / "store", registries={"docker.io": registry}) as mirror:
        await mirror.get(TAG)
        answer = await explained(mirror)
        assert (answer["tag"]["ttl"], answer["tag"]["ttl_rule"]) == (7 * 86400, "registries.docker.io.tags, match library/app:1")
        assert (answer["tag"]["pinned"], answer["policy"]) == (True, "allow: library/*")
        assert (await explained(mirror, "app:2"))["tag"]["ttl_rule"] == "tags.ttl"
        for image, rule in (("app:secret", "deny: *:secret"), ("foreign/app:1", "allow has no rule for it")):
            answer = await explained(mirror, image)
            assert (answer["policy"], answer["pull"]["action"]) == (rule, "refuse")


@pytest.mark.parametrize(("query", "status"), [("", 400), ("UPPER", 400), ("a@sha256:1", 400), ("quay.io/a/b:1", 404)])
async def test_nonsense(mirror, query, status):
    answered, answer = await explain(mirror, query)
    assert (answered, "error" in answer) == (status, True)


async def test_command(hub, mirror, tmp_path):
    """People get lines that fit a terminal; scripts the API's JSON."""
    image = hub.add_image(APP, "1")
    await pull_all(mirror, image)
    address = ("--url", f"http://127.0.0.1:{mirror.admin_port}")
    status, out, complaint = await command("explain", "app:1", *address, directory=tmp_path)
    assert (status, complaint) == (0, "")
    for part in (f"docker.io/{APP}:1", "complete", str(image.digest), "HIT: served from the store", "1m, by tags.ttl", "MISS, "):
        assert part in out, out
    assert all(line == line.rstrip() for line in out.splitlines())
    status, out, _ = await command("explain", "app:1", "--json", *address, directory=tmp_path)
    assert (status, json.loads(out)["held"]) == (0, "complete")
