"""An order is cancelled: its fetches stop, those that somebody else wants go on, and the answer says what was done."""

import asyncio

import pytest

from tests.fakehub import Rule
from tests.mirror.commands import command
from tests.mirror.syncing import Orders, named
from tests.support.names import APP
from tests.support.waiting import LIMIT, eventually

CDN = Rule(kind="cdn", times=None)


@pytest.fixture
def orders(mirror):
    return Orders(mirror)


async def held_up(hub, orders, *, tag="1", size=3_000_000):
    """An order whose layer has arrived in part; and the image, and the gate."""
    layer = hub.add_synthetic_blob(APP, size)
    image = hub.add_image(APP, tag, layers=[layer])
    gate = hub.gate(Rule(kind="cdn", reference=layer.digest, times=None), after=size // 2)
    name = await orders.give("warm", images=[f"app:{tag}"])
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    # The state is written from time to time.
    await orders.until(lambda state: any(run["name"] == name for run in state["running"]))
    return name, image, gate


async def test_running(hub, mirror, orders):
    """The fetches of a running order stop, the tag stays as it was, and what had arrived is used by the next order."""
    name, image, gate = await held_up(hub, orders)
    status, done = await orders.ask("DELETE", f"/api/v1/sync/{name}")
    assert (status, done["result"], done["total"], done["tags"]) == (200, "cancelled", 1, {})
    assert done["bytes_fetched"] == len(image.raw) + image.config.size
    await eventually(lambda: not gate.waiting, "the end of the connection")
    await mirror.idle()
    assert named(mirror, "1") is None
    assert (await orders.ask("GET", f"/api/v1/sync/{name}"))[1] == done
    assert await mirror.metric("sync_runs_total", result="cancelled") == 1
    gate.release()
    hub.reset_counters()
    assert (await orders.warm("app:1"))["result"] == "completed"
    (rest,) = hub.find("GET", host="cdn", reference=image.layers[0].digest)
    assert rest.range is not None


async def test_client_goes_on(hub, mirror, orders):
    """A download that a client reads, too, continues for the client."""
    name, image, gate = await held_up(hub, orders)
    layer = image.layers[0].digest
    pull = asyncio.create_task(mirror.get(f"/v2/{APP}/blobs/{layer}"))
    await eventually(lambda: mirror.download(layer).readers == 2, "the client")
    assert (await orders.ask("DELETE", f"/api/v1/sync/{name}"))[1]["result"] == "cancelled"
    gate.release()
    answer = await asyncio.wait_for(pull, LIMIT)
    assert (answer.status, answer.sha256) == (200, layer)
    assert len(hub.find("GET", host="cdn", reference=layer)) == 1


async def test_other_order_goes_on(hub, mirror, orders):
    """An order of another kind that fetches the same layer gets it, from the same download."""
    name, image, gate = await held_up(hub, orders)
    hub.add_image(APP, "2", layers=image.layers)
    await mirror.reload(sync={"images": ["app:2"]})
    layer = image.layers[0].digest
    await eventually(lambda: mirror.download(layer).readers == 2, "the scheduled run")
    assert (await orders.ask("DELETE", f"/api/v1/sync/{name}"))[1]["result"] == "cancelled"
    gate.release()
    await orders.until(lambda state: state["last"]["schedule"])
    assert named(mirror, "2") is not None
    assert len(hub.find("GET", host="cdn", reference=layer)) == 1


async def test_waiting(hub, mirror, orders):
    """A waiting order is cancelled at once, although the one before it takes long; that one goes on."""
    first, image, gate = await held_up(hub, orders)
    second = await orders.give("warm", images=[f"app:{number}" for number in range(30)])
    status, done = await orders.ask("DELETE", f"/api/v1/sync/{second}")
    assert (status, done["result"], done["tags"], done["bytes_fetched"]) == (200, "cancelled", {}, 0)
    state = await orders.state()
    assert (state["waiting"], [run["name"] for run in state["running"]]) == ([], [first])
    gate.release()
    assert (await orders.ended(first))["result"] == "completed"
    assert named(mirror, "1") == image.digest


async def test_schedule(hub, mirror, orders):
    """The scheduled run can be cancelled by its name; the next one comes after the interval."""
    layer = hub.add_synthetic_blob(APP, 3_000_000)
    hub.add_image(APP, "1", layers=[layer])
    gate = hub.gate(CDN, after=1000)
    await mirror.reload(sync={"interval": "1h", "images": ["app:1"]})
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    await orders.until(lambda state: state["running"])
    assert (await orders.ask("DELETE", "/api/v1/sync/schedule"))[1]["result"] == "cancelled"
    state = await orders.until(lambda state: not state["running"])
    assert state["last"]["schedule"]["result"] == "cancelled"
    assert state["next"] > state["last"]["schedule"]["began"] + 1800
    assert (await orders.ask("DELETE", "/api/v1/sync/schedule"))[0] == 409


async def test_repeated_name(hub, mirror, orders):
    """The cancellation of an order does not cancel a later one of the same name, as a webhook's orders have."""
    name = "webhook-now-docker.io/library/app:1"
    hub.add_image(APP, "1")
    row = {"kind": "sync", "images": ["app:1"], "platforms": [], "asked": 1.0, "after": 1.0, "by": "webhook"}
    mirror.store.jobs.put_cancellation(name, 0.5)
    mirror.store.jobs.put(name, row)
    assert (await orders.ended(name))["result"] == "failed"


async def test_ended_and_unknown(hub, mirror, orders):
    """An order that has ended, or that there is not, is a clear answer."""
    hub.add_image(APP, "1")
    name = await orders.give("warm", images=["app:1"])
    await orders.ended(name)
    status, answer = await orders.ask("DELETE", f"/api/v1/sync/{name}")
    assert (status, answer["error"]) == (409, f"order {name} has ended already: completed")
    status, answer = await orders.ask("DELETE", "/api/v1/sync/none")
    assert (status, answer["error"]) == (404, "there is no such order")


async def test_command(hub, mirror, orders, tmp_path):
    """`sync --cancel` stops an order that `sync --status` names, and says what was done."""
    name, _, _ = await held_up(hub, orders)

    async def run(*arguments):
        return await command(*arguments, "--url", f"http://127.0.0.1:{mirror.admin_port}", directory=tmp_path)

    assert f"running: warm by operator, 0 of 1 images done, order {name}" in (await run("sync", "--status"))[1]
    status, out, complaint = await run("sync", "--cancel", name)
    assert (status, complaint) == (0, "")
    assert out.startswith("cancelled in ")
    assert "0 of 1 images done" in out
    status, out, complaint = await run("sync", "--cancel", name)
    assert (status, out) == (1, "")
    assert "has ended already: cancelled" in complaint
