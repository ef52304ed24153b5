"""What an operator learns of tags that are held back, and how one lets them through."""

import json

import pytest

from tests.mirror.commands import command
from tests.mirror.holding import COOLDOWN, FROZEN, REFUSING, Holding, held_back, moved, registries
from tests.mirror.syncing import Orders
from tests.support.browser import Browser, hidden_fields
from tests.support.names import APP, DAY, TAG, manifest_path
from tests.support.waiting import eventually

IMAGE = f"docker.io/{APP}:1"

pytestmark = pytest.mark.usefixtures("quick_sync")


async def explained(mirror, image):
    return (await Orders(mirror).ask("GET", f"/api/v1/explain?image={image}"))[1]


async def listed(mirror):
    return (await Orders(mirror).ask("GET", "/api/v1/status"))[1]["held_back"]


async def release(mirror, *images):
    return await Orders(mirror).ask("POST", "/api/v1/release", {"images": list(images)})


@pytest.mark.parametrize("rule", [COOLDOWN, FROZEN, REFUSING])
async def test_release_lets_one_move_through(hub, holding, rule, log):
    """It is fetched ahead of the next pull; a later move is held back again."""
    async with holding(rule) as (mirror, clock):
        if rule is REFUSING:
            hub.add_image(APP, "1", layers=[b"old"])
            assert (await mirror.get(TAG)).status == 403
            clock.advance(3 * DAY)
        old, new = await moved(hub, mirror, clock)
        for blob in (old.config, *old.layers):
            await mirror.get(f"/v2/{APP}/blobs/{blob.digest}")
        assert (await mirror.get(TAG)).sha256 == old.digest
        status, answer = await release(mirror, "app:1")
        assert (status, answer["released"]) == (200, [{"image": IMAGE, "digest": new.digest}])
        await Orders(mirror).ended(answer["order"])
        assert mirror.holds(new.layers[0].digest)
        assert (await mirror.get(TAG)).sha256 == new.digest
        (line,) = (event for event in log if event["event"] == "audit" and event["action"] == "release")
        assert line["images"] == [f"{IMAGE} to {new.digest}"]
        third = hub.add_image(APP, "1", layers=[b"third"])
        clock.advance(61)
        answer = await mirror.get(TAG)
        assert (answer.sha256, held_back(answer)[0]) == (new.digest, third.digest)


async def test_release_is_of_the_digest_that_was_held_back(hub, holding):
    """What upstream names by then, and nobody has seen, is held back."""
    async with holding(COOLDOWN) as (mirror, clock):
        old, _ = await moved(hub, mirror, clock)
        await mirror.get(TAG)
        third = hub.add_image(APP, "1", layers=[b"third"])
        assert (await release(mirror, "app:1"))[0] == 200
        answer = await mirror.get(TAG)
        assert (answer.sha256, held_back(answer)[0]) == (old.digest, third.digest)


async def test_release_survives_a_restart(hub, holding):
    """Also while upstream cannot be asked; the old image is served until then."""
    async with holding(FROZEN, sync={"interval": "0"}) as (mirror, clock):
        old, new = await moved(hub, mirror, clock)
        await mirror.get(TAG)
        mirror.store.index.holds.release(*_row(mirror))
    async with holding(FROZEN, clock=clock) as (mirror, clock):
        assert (await mirror.get(TAG)).sha256 == new.digest
        assert (await listed(mirror))["count"] == 0
    assert old.digest != new.digest


def _row(mirror):
    ((repository, tag, hold),) = mirror.store.index.holds.all()
    return repository, tag, hold.digest


async def test_release_of_new_tags_and_digests(hub, holding):
    """By a glob, and by a digest that nobody has a tag for."""
    async with holding(REFUSING) as (mirror, clock):
        one, two = hub.add_image(APP, "1"), hub.add_image(APP, "2")
        assert (await mirror.get(TAG)).status == (await mirror.get(manifest_path(two.digest))).status == 403
        status, answer = await release(mirror, "app:*", f"app@{two.digest}")
        names = [IMAGE, f"docker.io/{APP}@{two.digest}"]
        assert (status, [entry["image"] for entry in answer["released"]], answer["order"]) == (200, names, None)
        assert (await mirror.get(TAG)).sha256 == one.digest
        assert (await mirror.get(manifest_path(one.digest))).sha256 == one.digest
        assert (await mirror.get(manifest_path(two.digest))).sha256 == two.digest
        assert clock.offset == 0


async def test_mistakes(hub, holding):
    """Each names what is wrong; then nothing is released, also of what is held back."""
    async with holding(COOLDOWN) as (mirror, clock):
        old, _ = await moved(hub, mirror, clock)
        await mirror.get(TAG)
        orders = Orders(mirror)
        for images, status, said in (
            (["app:1", "app:none"], 404, "app:none: nothing of that name is held back"),
            (["other/*"], 404, "other/*"),
            ([f"app@{old.digest}"], 404, old.digest),
            ([], 400, "images"),
            (["app::1"], 400, "invalid tag"),
            ([1], 400, "images"),
            ("app:1", 400, "images"),
        ):
            answered, answer = await orders.ask("POST", "/api/v1/release", {"images": images})
            assert (answered, said in answer["error"]) == (status, True), answer
        assert (await orders.ask("POST", "/api/v1/release", {}))[0] == 400
        assert (await mirror.get(TAG)).sha256 == old.digest


# ---- what is said


async def test_status_metric_and_explain(hub, holding):
    """They agree, while a tag is held back and after."""
    async with holding(COOLDOWN) as (mirror, clock):
        assert (await mirror.metrics())['registry_mirror_tags_held_back{registry="docker.io"}'] == 0
        old, new = await moved(hub, mirror, clock)
        await mirror.get(TAG)
        assert await mirror.metric("tags_held_back", registry="docker.io") == 1
        (row,) = (await listed(mirror))["tags"]
        assert (row["image"], row["old"], row["new"], row["reason"]) == (IMAGE, old.digest, new.digest, "cooldown")
        assert row["until"] == row["seen"] + 3 * DAY
        told = (await explained(mirror, "app:1"))["tag"]["held_back"]
        assert told == {"digest": new.digest, "reason": "cooldown", "until": row["until"]}
        rule = (await explained(mirror, "app:1"))["tag"]["hold_rule"]
        assert rule == {"cooldown": 3 * DAY, "cooldown_new": "serve", "freeze": False}
        assert (await explained(mirror, "other:1"))["tag"]["hold_rule"] is None
        clock.advance(3 * DAY)
        assert await mirror.metric("tags_held_back") == 0
        assert (await explained(mirror, "app:1"))["tag"]["held_back"] is None
        assert (await listed(mirror)) == {"count": 0, "tags": []}


async def test_rules_that_are_gone_hold_nothing(hub, holding, tmp_path, monkeypatch):
    """A reload without the rule leaves no tag in the list."""
    async with holding(FROZEN) as (mirror, clock):
        _, new = await moved(hub, mirror, clock)
        await mirror.get(TAG)
        assert (await listed(mirror))["count"] == 1
        await mirror.reload(registries=registries(hub))
        Holding(hub, tmp_path, monkeypatch).clock(mirror, clock).advance(61)
        assert (await listed(mirror))["count"] == 0
        assert (await mirror.get(TAG)).sha256 == new.digest


async def test_explain_of_what_is_refused(hub, holding):
    """A pull now, for a tag and for digests that were seen and never seen; nothing is asked."""
    async with holding(REFUSING) as (mirror, clock):
        image, other = hub.add_image(APP, "1"), hub.add_image(APP, "2")
        await mirror.get(TAG)
        hub.reset_counters()
        for name, why in (
            ("app:1", f"cooldown_new refuses {image.digest} until"),
            (f"app@{image.digest}", "2d23h are left"),
            (f"app@{other.digest}", "it was never seen here"),
        ):
            pull = (await explained(mirror, name))["pull"]
            assert (pull["action"], why in pull["why"]) == ("refuse", True), pull
        assert hub.count() == 0
        clock.advance(3 * DAY)
        assert (await explained(mirror, f"app@{image.digest}"))["pull"]["action"] == "fetch"


async def test_commands(hub, holding, tmp_path):
    """`status` and `explain` say what is held back, `release` lets it through, and complains about what is not."""
    async with holding(COOLDOWN) as (mirror, clock):
        _, new = await moved(hub, mirror, clock)
        await mirror.get(TAG)
        address = ("--url", f"http://127.0.0.1:{mirror.admin_port}")

        async def run(*arguments):
            return await command(*arguments, *address, directory=tmp_path)

        _, out, _ = await run("status")
        assert "held back:" in out
        assert new.digest.removeprefix("sha256:")[:12] in out
        _, out, _ = await run("explain", "app:1")
        assert "followed 3d after the new digest was first seen here" in " ".join(out.split())
        assert f"{new.digest}, for another 3d" in " ".join(out.split())
        refusal = f"{address[1]} refuses (404): app:2: nothing of that name is held back"
        assert await run("release", "app:2") == (1, "", f"registry-mirror: {refusal}\n")
        status, out, _ = await run("release", "app:1")
        assert (status, out.splitlines()[0]) == (0, f"{IMAGE}: released to {new.digest}")
        assert (await mirror.get(TAG)).sha256 == new.digest
        status, _, complaint = await run("release", "app:1", "--json")
        assert (status, "nothing of that name is held back" in complaint) == (1, True)


async def test_page(hub, holding, log):
    """The overview lists what is held back; a release is confirmed, and asks again if another digest is held back by then."""
    async with holding(FROZEN) as (mirror, clock):
        _, new = await moved(hub, mirror, clock)
        await mirror.get(TAG)
        browser = Browser(mirror)
        assert "/release?image=" in (await browser.get("/")).body.decode()
        assert "until it is released" in (await browser.get(f"/image?name={IMAGE}")).body.decode()
        assert (await browser.get("/release")).status == 400
        assert "is held back" in (await browser.get("/release?image=none")).body.decode()
        confirmation = await browser.get(f"/release?image={IMAGE}")
        assert new.digest in confirmation.body.decode()
        third = hub.add_image(APP, "1", layers=[b"third"])
        clock.advance(61)
        await mirror.get(TAG)
        again = await browser.fill(confirmation, "/release")
        assert "Nothing was released" in again.body.decode()
        assert held_back(await mirror.get(TAG))[0] == third.digest
        fields = {**hidden_fields(again), "form": "another"}
        assert (await browser.send("/release", fields)).status == 403
        assert "Released" in (await browser.fill(again, "/release")).body.decode()
        assert (await mirror.get(TAG)).sha256 == third.digest
        assert [event["action"] for event in log if event["event"] == "audit"] == ["refused", "release"]


async def test_webhook_of_a_push_does_not_follow(hub, holding, tmp_path):
    """The pushed tag is checked at once, and held back like any other."""
    (tmp_path / "secret").write_text("a long secret for webhooks")
    async with holding(COOLDOWN, sync={"interval": "0", "webhook_secret_file": str(tmp_path / "secret")}) as (mirror, clock):
        old, new = await moved(hub, mirror, clock)
        body = {"push_data": {"tag": "1"}, "repository": {"repo_name": APP}}
        async with mirror.session.post(
            mirror.url("/webhooks/dockerhub/a%20long%20secret%20for%20webhooks"), data=json.dumps(body)
        ) as sent:
            assert sent.status in (200, 202), await sent.text()
        orders = Orders(mirror)
        await eventually(lambda: mirror.store.jobs.result(IMAGE) is not None, "the check of the pushed tag")
        assert mirror.store.jobs.result(IMAGE)["result"] == "held_back"
        assert (await mirror.get(TAG)).sha256 == old.digest
        assert not mirror.holds(new.digest)
        await eventually(orders.state, "the end of the check", holds=lambda state: state["running"] == [])
