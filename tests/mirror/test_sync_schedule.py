"""The resync by itself: when it runs, whom it asks, what a limit, an outage, a restart or a reload does to it."""

import asyncio
import contextlib
import json
import shutil
import sqlite3
import time
from dataclasses import replace

import pytest

from mirror.sync import run, scheduler
from mirror.sync.job import by_webhook
from tests.fakehub import NoHeaders, RateLimited, Rule
from tests.mirror.syncing import Orders, known, named, pull
from tests.support.clock import Clock
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, tag_name
from tests.support.waiting import LIMIT, eventually

SOON = {"interval": "200ms"}
HEADS = Rule(kind="manifest", method="HEAD", times=None)

pytestmark = pytest.mark.usefixtures("quick_sync")


@pytest.fixture
def orders(mirror):
    return Orders(mirror)


def digests(image):
    return [image.digest, image.config.digest, *(layer.digest for layer in image.layers)]


def heads(hub):
    """The tags that upstream has answered about, in order."""
    return [seen.reference for seen in hub.find("HEAD", "manifest", status=200)]


def tags(hub, mirror, count, **changes):
    """So many tags that are known here."""
    images = {f"{number}": hub.add_image(APP, f"{number}", layers=[b"%d" % number]) for number in range(count)}
    for tag, image in images.items():
        known(mirror, image, tag, **changes)
    return images


def lasted(state):
    """What the last scheduled run came to."""
    return (state["last"]["schedule"] or {}).get("result")


# ---- moves


async def test_moved_tag_is_there_without_being_asked_for(hub, mirror, orders):
    """With nobody asking, a moved tag's image is there whole after the next run, and a pull of it asks upstream nothing."""
    hub.add_image(APP, "1", layers=[b"old"])
    await pull(mirror, APP, "1")
    await mirror.reload(sync=SOON)
    new = hub.add_image(APP, "1", layers=[b"new" * 10_000, b"more"])
    await eventually(lambda: named(mirror, "1") == new.digest, "the switch")
    # No more runs; one that had begun may still ask for the tag.
    await mirror.reload(sync={"interval": "0"})
    await orders.until(lambda state: not state["running"])
    hub.reset_counters()

    async def asked():
        before = hub.count()
        assert await pull(mirror, APP, "1") == digests(new)
        assert not hub.find("GET", kind="manifest") + hub.find("GET", kind="blob")
        return hub.count() - before

    await eventually(asked, "a pull that asks upstream nothing", holds=lambda count: count == 0)


@pytest.mark.parametrize("ttl", ["60s", "0s"])
async def test_pulls_while_a_tag_moves(hub, tmp_path, ttl):
    """A tag moves many times under clients that pull all the time: each gets one of the images, whole."""
    shared = b"shared" * 5000
    images = [hub.add_image(APP, "1", layers=[shared, b"0"])]
    done = asyncio.Event()

    async def client(mirror):
        pulls = 0
        while not done.is_set():
            assert await pull(mirror, APP, "1") in [digests(image) for image in images]
            pulls += 1
        return pulls

    async with MirrorUnderTest(hub, tmp_path / "store", tags={"ttl": ttl}, sync={"interval": "30ms"}) as mirror:
        await pull(mirror, APP, "1")
        async with asyncio.TaskGroup() as group:
            clients = [group.create_task(client(mirror)) for _ in range(4)]
            for number in range(1, 9):
                images.append(hub.add_image(APP, "1", layers=[shared, b"%d" % number * 20_000]))
                await eventually(lambda: named(mirror, "1") == images[-1].digest, f"move {number}")
            done.set()
        assert min(client.result() for client in clients) > 3


async def test_client_that_was_faster(hub, mirror, orders):
    """What a client has learned while an image was fetched is not taken back when the fetch is done."""
    first = hub.add_image(APP, "1", layers=[b"first"])
    await mirror.reload(tags={"ttl": "0s"})
    await pull(mirror, APP, "1")
    second = hub.add_image(APP, "1", layers=[b"second" * 10_000])
    gate = hub.gate(Rule(kind="cdn", times=None), after=100)
    order = await orders.give("sync", images=["app"])
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    third = hub.add_image(APP, "1", layers=[b"third"])
    assert (await mirror.get(f"/v2/{APP}/manifests/1")).body == third.raw
    gate.release()
    done = await orders.ended(order)
    assert (done["recent"][0]["old"], done["recent"][0]["digest"]) == (first.digest, third.digest)
    assert named(mirror, "1") == third.digest
    assert second.digest != third.digest


async def test_purged_meanwhile(hub, mirror, orders):
    """An image that is purged while its successor is fetched does not come back by that."""
    hub.add_image(APP, "1", layers=[b"old"])
    await pull(mirror, APP, "1")
    hub.add_image(APP, "1", layers=[b"new" * 10_000])
    gate = hub.gate(Rule(kind="cdn", times=None), after=100)
    order = await orders.give("sync", images=["app"])
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    status, _ = await orders.ask("POST", "/api/v1/purge", {"match": "app"})
    assert status == 200
    gate.release()
    assert (await orders.ended(order))["tags"] == {"gone": 1}
    assert named(mirror, "1") is None


# ---- whom it asks


async def test_many_tags(hub, mirror, orders):
    """A run over hundreds of tags costs a HEAD each, and GETs for those alone that have moved."""
    tags(hub, mirror, 300)
    moved = {f"{number}": hub.add_image(APP, f"{number}", layers=[b"moved", b"%d" % number]) for number in (7, 150, 299)}
    await mirror.reload(sync={"interval": "1h"})
    state = await orders.until(lasted)
    assert state["last"]["schedule"]["tags"] == {"unchanged": 297, "moved": 3}
    assert sorted(heads(hub), key=int) == [str(number) for number in range(300)]
    gets = [seen.reference for seen in hub.find("GET", kind="manifest", status=200)]
    assert sorted(gets) == sorted(image.digest for image in moved.values())
    assert await mirror.metric("sync_tags_total", result="unchanged") == 297
    assert await mirror.metric("sync_last_success_timestamp_seconds") > 0


async def test_most_pulled_first(hub, mirror, orders, monkeypatch):
    """What is pulled most is looked at first, and pulls of long ago count less."""
    monkeypatch.setattr(run, "_MAX_IMAGES_PER_REGISTRY", 1)
    image = hub.add_image(APP, "x")
    wanted = {"often": (10, 0), "sometimes": (5, 0), "once": (1, 0), "often-last-month": (12, 30 * 86400)}
    for tag, (pulls, ago) in sorted(wanted.items()):
        hub.move_tag(APP, tag, image.digest)
        known(mirror, image, tag, pulls=pulls, pulled=ago)
    await mirror.reload(sync={"interval": "1h", "active_within": "90d"})
    await orders.until(lasted)
    assert heads(hub) == list(wanted)


async def test_only_what_is_in_use(hub, mirror, orders):
    """Tags that nobody has pulled for longer than `active_within` are left alone; an order by name reaches them."""
    image = hub.add_image(APP, "x")
    for tag, days in (("day", 1), ("week", 6.9), ("older", 7.1), ("year", 365)):
        hub.move_tag(APP, tag, image.digest)
        known(mirror, image, tag, pulled=days * 86400)
    await mirror.reload(sync={"interval": "1h"})
    await orders.until(lasted)
    assert sorted(heads(hub)) == ["day", "week"]
    hub.reset_counters()
    assert (await orders.sync("app:year"))["tags"] == {"unchanged": 1}
    assert heads(hub) == ["year"]


async def test_runs_repeat(hub, mirror, orders):
    """Each run asks about each tag once more."""
    tags(hub, mirror, 3)
    await mirror.reload(sync=SOON)
    await hub.wait_for(9, method="HEAD", kind="manifest", status=200)
    state = await orders.until(lambda state: lasted(state) == "completed")
    begun, following = state["last"]["schedule"]["began"], state["next"]
    assert 0.1 < following - begun <= 0.6


async def test_clock_that_was_set_back(hub, mirror, orders):
    """What was checked, run or ordered while the clock was a year ahead is looked at now."""
    ahead = 365 * 86400.0
    image = hub.add_image(APP, "1")
    known(mirror, image, "1", pulled=-ahead)
    record = mirror.store.index.tags.get(*tag_name("1"))
    mirror.store.index.tags.put(*tag_name("1"), replace(record, checked=time.time() + ahead))
    row = {"round": time.time() + ahead, "began": time.time() + ahead, "next": time.time() + 2 * ahead}
    fingerprint = mirror.graph.sync_services.planner.fingerprint
    mirror.store.jobs.put_state("schedule", {**row, "unfinished": True, "fingerprint": fingerprint})
    await mirror.reload(sync={"interval": "1h"})
    assert (await orders.until(lasted))["last"]["schedule"]["tags"] == {"unchanged": 1}
    now, again = by_webhook(f"docker.io/{APP}:1", 15.0)
    assert [order.is_due(time.time()) for order in (now, again)] == [True, False]
    assert [order.is_due(time.time() - ahead) for order in (now, again)] == [True, True]


# ---- the limit


async def test_what_is_left_is_for_clients(hub, mirror, orders):
    """Below the reserve upstream is asked nothing at all, neither by a run nor by an order; with more left it is."""
    tags(hub, mirror, 5)
    hub.ratelimit_remaining = 15
    # The number becomes known by what a client does.
    hub.add_image(APP, "client")
    await mirror.get(f"/v2/{APP}/manifests/client")
    hub.reset_counters()
    wanted = {"interval": "1h", "images": ["other:*"]}
    first = mirror.upstream().health
    await mirror.reload(sync=wanted)
    mirror.upstream().health.pull_quota = first.pull_quota
    assert (await orders.sync("app"))["result"] == "limited"
    warmed = await orders.warm("app:1")
    assert warmed["result"] == "limited"
    assert warmed["problems"] == {f"docker.io/{APP}:1": "docker.io leaves 14 pulls, and sync.reserve keeps 20 for clients"}
    state = await orders.until(lasted)
    assert lasted(state) == "limited"
    assert hub.count() == 0
    assert await mirror.metric("sync_runs_total", result="limited") >= 3
    hub.ratelimit_remaining = 1000
    await mirror.get(f"/v2/{APP}/manifests/0")
    assert (await orders.sync("app"))["tags"] == {"unchanged": 6}


async def test_limited_in_the_middle(hub, mirror, orders, monkeypatch, log):
    """After a 429 a run ends early and says so; the next one takes what was left, by itself, once the pause is over."""
    tags(hub, mirror, 40)
    entry = hub.script(Rule(kind="manifest", method="HEAD", times=None, skip=15), RateLimited())
    await mirror.reload(sync=SOON)
    clock = Clock(mirror, monkeypatch)
    state = await orders.until(lambda state: lasted(state) == "limited")
    asked = set(heads(hub))
    first = next(event for event in log if event["event"] == "sync_ended")
    assert (first["result"], first["unchanged"], first["skipped"]) == ("limited", 15, 25)
    assert len(asked) == 15
    assert "limit" in next(iter(state["last"]["schedule"]["problems"].values()))
    assert next(event["rest"] for event in log if event["event"] == "sync_left") == "comes in the next run"
    # Nothing is asked while upstream wants to be left alone.
    before = hub.count(kind="manifest")
    runs = await mirror.metric("sync_runs_total", result="limited")
    await eventually(lambda: mirror.metric("sync_runs_total", result="limited"), holds=lambda seen: seen >= runs + 2)
    assert hub.count(kind="manifest") == before
    entry.remove()
    hub.reset_counters()
    clock.advance(31)
    await orders.until(lambda state: lasted(state) == "completed")
    rest = heads(hub)[:25]
    assert set(rest) | asked == {str(number) for number in range(40)}
    assert not set(rest) & asked


async def test_upstream_is_down(hub, mirror, orders):
    """A run over a dead upstream ends at once, and loses nothing; when upstream is back, so is the resync."""
    images = tags(hub, mirror, 50)
    await hub.stop()
    await mirror.reload(sync=SOON)
    state = await orders.until(lambda state: lasted(state) == "limited")
    assert state["last"]["schedule"]["tags"]["skipped"] >= 45
    said = (await orders.warm("app:new"))["problems"][f"docker.io/{APP}:new"]
    assert said.startswith(f"docker.io cannot be asked for now: {hub.registry_host} is failing: ")
    assert all(named(mirror, tag) == image.digest for tag, image in images.items())
    await hub.start()
    await orders.until(lambda state: lasted(state) == "completed")
    assert set(heads(hub)) == set(images)


# ---- restarts and reloads


async def test_restart_in_the_middle_of_a_run(hub, tmp_path):
    """A run that a stop has cut goes on after the start, with what it had not looked at."""
    store = tmp_path / "store"
    async with MirrorUnderTest(hub, store) as mirror:
        images = tags(hub, mirror, 12)
        hub.add_image(APP, "big", layers=[b"old"])
        await pull(mirror, APP, "big")
        # Looked at last.
        known(mirror, hub.add_image(APP, "last"), "last", pulled=3600, pulls=0)
        big = hub.add_image(APP, "big", layers=[b"new" * 50_000])
        gate = hub.gate(Rule(kind="cdn", times=None), after=1000)
        await mirror.reload(sync={"interval": "1h"})
        await asyncio.wait_for(gate.reached.wait(), LIMIT)
        orders = Orders(mirror)
        await orders.until(lambda state: state["running"] and state["running"][0]["tags"].get("unchanged", 0) >= 13)
    assert set(heads(hub)) == {*images, "last", "big"}
    hub.reset_counters()
    gate.release()
    async with MirrorUnderTest(hub, store, sync={"interval": "1h"}) as mirror:
        state = await Orders(mirror).until(lasted)
        assert state["last"]["schedule"]["tags"] == {"moved": 1}
        assert heads(hub) == ["big"]
        hub.reset_counters()
        assert await pull(mirror, APP, "big") == digests(big)
        assert hub.count() == 0


async def test_orders_outlive_a_restart(hub, tmp_path):
    """Orders that wait or are being carried out are carried out after the start, by their names."""
    store = tmp_path / "store"
    images = {tag: hub.add_image(APP, tag, layers=[tag.encode() * 50_000]) for tag in ("1", "2")}
    gate = hub.gate(Rule(kind="cdn", times=None), after=1000)
    async with MirrorUnderTest(hub, store) as mirror:
        orders = Orders(mirror)
        names = [await orders.give("warm", images=[f"app:{tag}"]) for tag in images]
        await asyncio.wait_for(gate.reached.wait(), LIMIT)
    gate.release()
    async with MirrorUnderTest(hub, store) as mirror:
        orders = Orders(mirror)
        assert [(await orders.ended(order))["result"] for order in names] == ["completed"] * 2
        hub.reset_counters()
        for tag, image in images.items():
            assert await pull(mirror, APP, tag) == digests(image)
        assert hub.count() == 0
        assert (await orders.state())["waiting"] == []


async def test_many_large_orders(hub, mirror, orders, log):
    """Hundreds of orders of a thousand images each are taken, told of and logged in short, and each is carried out whole."""
    hub.add_image(APP, "1")
    await pull(mirror, APP, "1")
    names = [*(f"app:none{number}" for number in range(999)), "app:1"]
    gate = hub.script(Rule(kind="manifest", method="HEAD", times=None), fault := NoHeaders())
    given = [await orders.give("sync", images=names) for _ in range(5)]
    state = await orders.state()
    assert len(json.dumps(state)) < 30_000
    fault.release()
    gate.remove()
    done = [await orders.ended(order) for order in given]
    assert [order["tags"] for order in done] == [{"unchanged": 1}] * 5
    assert all(len(order["problems"]) == 100 for order in done)
    assert max(len(str(event)) for event in log) < 1000
    assert [event["more"] for event in log if event["event"] == "audit"] == [990] * 5


async def test_a_run_that_hangs(hub, mirror, orders, monkeypatch, log):
    """A run that does not come to its end is ended, and the next one goes on with its round."""
    # Time enough for the next run, on a busy machine, too.
    monkeypatch.setattr(scheduler, "_MAX_SCHEDULED_S", 3.0)
    tags(hub, mirror, 8)
    fault = NoHeaders()
    hub.script(Rule(kind="manifest", method="HEAD", reference="3"), fault)
    await mirror.reload(sync=SOON)
    await eventually(lambda: "timeout" in [event.get("result") for event in log], "the end of the run")
    await orders.until(lambda state: lasted(state) == "completed")
    assert await mirror.metric("sync_runs_total", result="timeout") == 1
    assert "3" in heads(hub)
    fault.release()


async def test_an_image_that_hangs(hub, mirror, orders, monkeypatch):
    """An image that does not come to its end fails by itself, and its order goes on."""
    monkeypatch.setattr(run, "_IMAGE_TIMEOUT_S", 4.0)
    for tag in ("1", "2"):
        hub.add_image(APP, tag, layers=[tag.encode() * 50_000])
    gate = hub.gate(Rule(kind="cdn"), after=1000)
    done = await orders.warm("app:1", "app:2")
    assert (done["result"], done["tags"]) == ("failed", {"failed": 1, "moved": 1})
    gate.release()


async def test_a_list_that_hangs(hub, mirror, orders, monkeypatch):
    """The bound counts for the plan, too."""
    hub.add_image(APP, "1")
    fault = NoHeaders()
    hub.script(Rule(kind="tags"), fault)
    with monkeypatch.context() as bounds:
        bounds.setattr(scheduler, "_MAX_JOB_S", 0.5)
        assert (await orders.warm("app:*"))["result"] == "timeout"
    fault.release()
    assert (await orders.warm("app:*"))["result"] == "completed"


async def test_reload_in_the_middle(hub, mirror, orders):
    """Other images in the configuration are brought at once, even while a run hangs; it goes on by the new configuration."""
    slow, quick = (hub.add_image(APP, tag, layers=[tag.encode() * 50_000]) for tag in ("slow", "quick"))
    gate = hub.gate(Rule(kind="cdn", times=None, reference=slow.layers[0].digest), after=1000)
    await mirror.reload(sync={"interval": "1h", "images": ["app:slow"]})
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    await mirror.reload(sync={"interval": "1h", "images": ["app:slow", "app:quick"]})
    await eventually(lambda: named(mirror, "quick") == quick.digest, "the new one")
    # Before upstream was found to be silent.
    assert hub.count("GET", "blob", "cdn", reference=slow.layers[0].digest) == 1
    assert named(mirror, "slow") is None
    gate.release()
    state = await orders.until(lasted)
    assert (lasted(state), state["last"]["schedule"]["total"]) == ("completed", 2)
    assert named(mirror, "slow") == slow.digest
    assert hub.count("GET", "blob", "cdn", reference=slow.layers[0].digest) == 1


async def test_shorter_interval(hub, mirror, orders):
    """A shorter interval counts at once, not when the longer one is over."""
    tags(hub, mirror, 2)
    await mirror.reload(sync={"interval": "1h"})
    await orders.until(lasted)
    hub.reset_counters()
    await mirror.reload(sync=SOON)
    await hub.wait_for(4, method="HEAD", kind="manifest", status=200)


async def test_images_without_an_interval(hub, mirror, orders):
    """With no interval configured images are still brought when they are configured, and let go when they no longer are."""
    hub.add_image(APP, "1")
    await mirror.reload(sync={"interval": "0", "images": ["app:1"]})
    await eventually(lambda: named(mirror, "1"), "the image")
    await orders.until(lasted)
    assert mirror.store.jobs.kept_images() == {f"docker.io/{APP}:1"}
    await mirror.reload(sync={"interval": "0", "images": []})
    await eventually(lambda: not mirror.store.jobs.kept_images(), "no pins")


async def test_lanes(hub, mirror, orders):
    """However much a run and an order to warm have to fetch, an order to look is carried out meanwhile."""
    hub.add_image(APP, "look")
    await pull(mirror, APP, "look")
    many = [f"app:{number}" for number in range(20)]
    for number in range(20):
        hub.add_image(APP, f"{number}", layers=[b"%d" % number * 5000])
    gate = hub.gate(Rule(kind="cdn", times=None), after=100)
    await mirror.reload(sync={"interval": "1h", "images": many[:10]})
    warm = await orders.give("warm", images=many[10:])
    await eventually(lambda: gate.waiting >= 8, "both are held up")
    assert (await orders.sync("app:look"))["tags"] == {"unchanged": 1}
    gate.release()
    assert (await orders.ended(warm))["result"] == "completed"


# ---- the ledger


async def test_lost_ledger(hub, tmp_path):
    """Without its ledger the mirror begins anew."""
    store = tmp_path / "store"
    settings = {"sync": {"interval": "1h", "images": ["app:1"]}}
    hub.add_image(APP, "1")
    async with MirrorUnderTest(hub, store, **settings) as mirror:
        await Orders(mirror).until(lasted)
    (found,) = store.rglob("sync/cache.db")
    shutil.rmtree(found.parent)
    async with MirrorUnderTest(hub, store, **settings) as mirror:
        state = await Orders(mirror).until(lasted)
        assert lasted(state) == "completed"
        assert mirror.store.jobs.kept_images() == {f"docker.io/{APP}:1"}


GARBAGE = ["7", '"text"', "[]", "[1, null]", "{}", '{"x": 1}', '{"docker.io/a:1": 7}', "null", "not json", "1e999", "true"]


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_garbage_in_the_ledger(hub, tmp_path, garbage, quiet):
    """Whatever stands in the ledger, the mirror starts, tells of itself, takes orders and runs."""
    store = tmp_path / "store"
    settings = {"sync": {"interval": "1h", "images": ["app:1"]}}
    hub.add_image(APP, "1")
    async with MirrorUnderTest(hub, store, **settings) as mirror:
        orders = Orders(mirror)
        await orders.until(lasted)
        await orders.warm("app:1")
        await orders.sync("app:1")
        mirror.store.jobs.put("waits", {"kind": "warm", "images": ["app:1"] * 20})
        mirror.store.jobs.put_state("running", [])
    (found,) = store.rglob("sync/cache.db")
    with contextlib.closing(sqlite3.connect(found)) as database, database:
        changed = database.execute("UPDATE Cache SET value = ?", (garbage,)).rowcount
        assert changed >= 8
    async with MirrorUnderTest(hub, store, **settings) as mirror:
        orders = Orders(mirror)
        assert lasted(await orders.until(lambda state: lasted(state) == "completed")) == "completed"
        assert (await orders.warm("app:1"))["result"] == "completed"
        assert [image["image"] for image in (await orders.state())["images"]] == [f"docker.io/{APP}:1"]
        assert mirror.services.janitor.pinned()
    quiet()


async def test_order_that_lost_a_part(hub, mirror, orders):
    """An order whose images are lost in part goes, and keeps no other one waiting."""
    hub.add_image(APP, "1")
    lost = {"kind": "warm", "images": ["app:1"] * 20, "platforms": [], "asked": 1.0, "after": 1.0, "by": "operator"}
    ledger = mirror.store.jobs
    ledger._table.set("order|lost", {**lost, "images": lost["images"][:10], "more": 10})
    assert ledger.get("lost") is None
    assert (await orders.warm("app:1"))["result"] == "completed"
    assert ledger.pending() == []


async def test_pins_that_are_none(hub, mirror):
    """What is no image's name in the ledger keeps nobody from evicting."""
    mirror.store.jobs.put_state("kept", {"a": ["x@y", "@", "docker.io/a:b@sha256:0", ":", ""]})
    assert mirror.services.janitor.pinned() == frozenset()


async def test_poison(hub, mirror, orders, quiet):
    """An order that cannot be understood any more ends, and blocks no other one."""
    mirror.store.jobs.put("poison", {"kind": "warm", "images": ["A B"], "platforms": ["?"], "asked": 0, "after": 0, "by": "x"})
    assert (await orders.ended("poison"))["result"] == "failed"
    hub.add_image(APP, "1")
    assert (await orders.warm("app:1"))["result"] == "completed"
    quiet()


# ---- no room


async def test_no_room(hub, tmp_path, blobs_only):
    """What the store cannot take is said by the image's name; what fits comes, and pulls work in any case."""
    storage = {"max_size": "1MiB", "scrub_interval": "0"}
    async with MirrorUnderTest(hub, tmp_path / "store", storage=storage) as mirror:
        small, large = hub.add_image(APP, "small"), hub.add_image(APP, "large", layers=[b"x" * (2 << 20)])
        done = await Orders(mirror).warm("app:small", "app:large")
        assert (done["result"], done["tags"]) == ("failed", {"moved": 1, "failed": 1})
        assert list(done["problems"]) == [f"docker.io/{APP}:large"]
        assert "storage.max_size" in done["problems"][f"docker.io/{APP}:large"]
        for tag, image in (("small", small), ("large", large)):
            assert await pull(mirror, APP, tag) == digests(image)


# ---- what may not be pulled


async def test_what_is_denied_is_left_alone(hub, mirror, orders):
    """Tags that were pulled before a rule denied them are not looked at, and keep no run from completing."""
    tags(hub, mirror, 3)
    hub.add_image(APP, "2.0")
    registry = {"upstreams": [hub.url], "token_hosts": [hub.token_host], "deny": ["library/app:1", "library/app:2*"]}
    await mirror.reload(registries={"docker.io": registry}, sync={"interval": "1h", "images": ["app:2*", "app:0*"]})
    state = await orders.until(lasted)
    assert (lasted(state), heads(hub)) == ("completed", ["0"])


async def test_registry_that_is_gone(hub, mirror, orders):
    """What is held of a registry that is no longer configured is left alone."""
    image = hub.add_image(APP, "1")
    record = mirror.store.index
    known(mirror, image, "1")
    from mirror.core.names import Repository, Tag

    held = record.tags.get(Repository.parse("docker.io", APP), Tag("1"))
    record.tags.put(Repository.parse("quay.io", APP), Tag("1"), held)
    await mirror.reload(sync={"interval": "1h"})
    state = await orders.until(lasted)
    assert (lasted(state), state["last"]["schedule"]["total"]) == ("completed", 1)


async def test_a_ledger_that_cannot_be_written(hub, mirror, monkeypatch, log):
    """On a full disk nothing is noted, and yet a run does not follow the other without a pause."""
    monkeypatch.setattr("mirror.storage.job_store.JobStore.put_state", lambda *_: None)
    await mirror.reload(sync={"interval": "1h"})
    await eventually(lambda: [event for event in log if event["event"] == "sync_ended"], "a run")
    # What would go wrong goes wrong at once, and again and again.
    await asyncio.sleep(0.5)
    assert len([event for event in log if event["event"] == "sync_ended"]) == 1


async def test_an_order_that_cannot_be_removed(hub, mirror, orders, monkeypatch, log):
    """Nor is an order carried out again and again that stands although it has come to its end."""
    monkeypatch.setattr("mirror.storage.job_store.JobStore.delete", lambda *_: None)
    assert (await orders.ask("POST", "/api/v1/sync", {"images": ["app:1"]}))[0] == 202
    await eventually(lambda: [event for event in log if event["event"] == "sync_ended"], "a run")
    await asyncio.sleep(0.5)
    assert len([event for event in log if event["event"] == "sync_ended"]) == 1


async def test_one_look(mirror, monkeypatch):
    """An idle mirror looks for jobs of all kinds, and for cancellations, in one turn of a thread."""
    looks = []
    jobs, state, cancellations = mirror.store.jobs, mirror.store.jobs.state, mirror.store.jobs.cancellations
    monkeypatch.setattr(jobs, "state", lambda name, kind: (looks.append(name), state(name, kind))[1])
    monkeypatch.setattr(jobs, "cancellations", lambda: (looks.append("cancelled"), cancellations())[1])
    await eventually(lambda: looks.count("schedule") >= 10, "ten looks for what is scheduled")
    assert looks.count("cancelled") <= looks.count("schedule") + 1
