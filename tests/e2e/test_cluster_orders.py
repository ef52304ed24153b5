"""Orders of `sync` and `warm` in a cluster with a real Redis: given to any node, told by any node, done once."""

import asyncio
import contextlib
import itertools
import json
import signal
import uuid

import pytest

from mirror.cluster.keys import Keys
from mirror.cluster.link import Script
from mirror.cluster.orders import SharedOrders
from tests.e2e.harness.cluster import cluster
from tests.e2e.harness.whole_nodes import whole_nodes
from tests.fakehub import Rule
from tests.mirror.commands import command
from tests.mirror.syncing import known, named
from tests.mirror.test_openapi import Described, described
from tests.support.names import APP
from tests.support.waiting import LIMIT, eventually

pytestmark = pytest.mark.e2e


@pytest.fixture
async def nodes(hub, redis, tmp_path):
    """Three nodes that hold nothing, and lose a node soon."""
    hub.auth = "none"
    async with whole_nodes(hub, tmp_path, redis, tags={"ttl": "1h"}) as found:
        for node in found:
            await eventually(lambda node=node: (node.store_path / "index" / "events").exists(), "reads events")
        yield found


async def told(nodes, order, result=None):
    """What all nodes tell of an order, as soon as they tell the same; that of a result, or of its end."""

    async def states():
        return [await node.orders.ask("GET", f"/api/v1/sync/{order}") for node in nodes]

    def agree(found):
        (status, first), *_ = found
        results = {state.get("result") for _, state in found}
        ended = first.get("result") in ([result] if result else ("completed", "failed", "cancelled", "limited", "timeout"))
        return status == 200 and len(results) == 1 and ended

    found = await eventually(states, f"the state of {order}", holds=agree)
    return found[0][1]


async def as_described(node, order):
    """The state of an order, which is as the API describes it; that of all orders is, too."""
    check = Described(node, await described(node))
    await check.ask("/api/v1/sync")
    return (await check.ask(f"/api/v1/sync/{order}", template="/api/v1/sync/{order}"))[1]


def by_node(state):
    return {one["name"]: one for one in state["nodes"]}


async def test_sync_on_all(hub, nodes):
    """Each node that holds the tag follows the move; upstream is asked once, and any node tells of all of them."""
    old = hub.add_image(APP, "1")
    for node in nodes[:2]:
        known(node, old, "1")
    new = hub.add_image(APP, "1", layers=[hub.add_synthetic_blob(APP, 1000)])
    order = await nodes[0].orders.give("sync", images=["app"])
    assert (await as_described(nodes[2], order))["result"] in ("waiting", "running", "completed")
    state = await told(nodes, order)
    assert await as_described(nodes[1], order) == state
    assert (state["result"], state["kind"], state["total"], state["tags"]) == ("completed", "sync", 2, {"moved": 2})
    counts = {name: (one["state"], one["tags"]) for name, one in by_node(state).items()}
    assert counts == {
        nodes[0].name: ("completed", {"moved": 1}),
        nodes[1].name: ("completed", {"moved": 1}),
        nodes[2].name: ("completed", {}),
    }
    assert [named(node, "1") for node in nodes] == [new.digest, new.digest, None]
    # The others are for tags of signatures.
    assert len([seen for seen in hub.find("HEAD", kind="manifest") if seen.path.endswith("/1")]) == 1
    assert hub.count(method="GET", kind="manifest") == 1
    assert state["problems"] == {}


async def test_orders_of_nothing(hub, nodes):
    """What no node holds is a problem of the order, although it is none of a node; the node that is asked refuses bad input."""
    state = await told(nodes, await nodes[1].orders.give("sync", images=["nope"]))
    assert state["result"] == "failed"
    assert {one["state"] for one in state["nodes"]} == {"completed"}
    assert "nothing of that name is held here" in state["problems"]["docker.io/nope"]
    for kind, body, key in (
        ("sync", {"images": ["a:b:c"]}, "b:c"),
        ("sync", {"image": []}, "image"),
        ("warm", {"images": ["app"], "platforms": ["x"]}, "platforms"),
        ("warm", {"images": ["ghcr.io/x/y"]}, "ghcr.io"),
    ):
        status, answer = await nodes[0].orders.ask("POST", f"/api/v1/{kind}", body)
        assert status in (400, 404), answer
        assert key in answer["error"]
    assert await nodes[1].services.node.orders.open_for_one() == []


async def test_same_order_at_once(hub, nodes):
    """It is one; after it has begun it is another one, for something may have moved since."""
    hub.add_image(APP, "1")
    names = await asyncio.gather(*(node.orders.give("warm", images=["app:1"]) for node in (*nodes, *nodes)))
    assert len(set(names)) == 1
    state = await told(nodes, names[0])
    assert state["result"] == "completed"
    assert hub.count(method="GET", kind="manifest") == 1
    assert sum(named(node, "1") is not None for node in nodes) == 1
    (owner,) = (node for node in nodes if node.name in by_node(state))
    again = await owner.orders.give("warm", images=["docker.io/library/app:1"])
    assert again != names[0]
    assert (await told(nodes, again))["tags"] == {"unchanged": 1}
    other = await nodes[0].orders.give("warm", images=["app:1"], platforms=["linux/arm64"])
    assert other not in names


async def held_up(hub, node, tag="1"):
    """An order whose layer arrives no further, and its gate."""
    layer = hub.add_synthetic_blob(APP, 3_000_000)
    hub.add_image(APP, tag, layers=[layer])
    gate = hub.gate(Rule(kind="cdn", reference=layer.digest, times=None), after=1 << 20)
    order = await node.orders.give("warm", images=[f"app:{tag}"])
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    return order, gate, layer


async def test_progress_by_any_node(hub, nodes):
    """A command behind a load balancer, which asks another node each time, sees the order to its end."""
    order, gate, _ = await held_up(hub, nodes[0])
    asked = itertools.cycle(nodes)

    async def state():
        return (await next(asked).orders.ask("GET", f"/api/v1/sync/{order}"))[1]

    def has_arrived(found):
        return found["result"] == "running" and found["images"] and found["images"][0]["bytes"] >= 1 << 20

    await eventually(state, "progress", holds=has_arrived)
    await as_described(nodes[1], order)
    async with nodes[1].session.get(f"http://127.0.0.1:{nodes[1].admin_port}/job?name={order}") as page:
        assert nodes[0].name in await page.text()
    _, listed = await nodes[2].orders.ask("GET", "/api/v1/sync")
    assert [(run["name"], run["nodes"][0]["name"]) for run in listed["running"]] == [(order, nodes[0].name)]
    gate.release()
    assert (await told(nodes, order))["result"] == "completed"
    assert (await nodes[2].orders.ask("GET", "/api/v1/sync"))[1]["running"] == []


async def test_cancelled_by_another_node(hub, nodes):
    order, gate, _ = await held_up(hub, nodes[0])
    status, state = await nodes[2].orders.ask("DELETE", f"/api/v1/sync/{order}")
    assert (status, state["result"]) == (200, "cancelled")
    await eventually(lambda: not gate.waiting, "the end of the connection")
    gate.release()
    assert named(nodes[0], "1") is None
    assert (await nodes[1].orders.ask("DELETE", f"/api/v1/sync/{order}"))[0] == 409
    assert (await nodes[1].orders.ask("DELETE", "/api/v1/sync/12-0123abcd"))[0] == 404


async def test_node_is_lost(hub, nodes):
    """Another node takes over what one node was to fetch; what all were to check is told as lost."""
    for node in nodes:
        node.services.node.orders.lost_after_s = 2.0
    old = hub.add_image(APP, "2")
    known(nodes[0], old, "2")
    order, gate, layer = await held_up(hub, nodes[0])
    new = hub.add_image(APP, "2", layers=[layer])
    manifest = hub.gate(Rule(kind="manifest", reference=new.digest, times=None))
    sync = await nodes[1].orders.give("sync", images=["app:2"])
    await asyncio.wait_for(manifest.reached.wait(), LIMIT)
    await told(nodes, sync, "running")
    nodes[0].stop()
    await nodes[0].stopped()
    for gates in (gate, manifest):
        gates.release()
    state = await told(nodes[1:], order)
    assert state["result"] == "completed"
    (owner,) = by_node(state)
    assert owner != nodes[0].name
    state = await told(nodes[1:], sync)
    assert state["result"] == "failed"
    assert {name: one["state"] for name, one in by_node(state).items()} == {
        nodes[0].name: "lost",
        nodes[1].name: "completed",
        nodes[2].name: "completed",
    }
    assert "has not reported" in state["problems"][nodes[0].name]


@pytest.mark.full
async def test_redis_loses_its_data(hub, redis, nodes):
    """The node that carries the order out writes it again."""
    order, gate, _ = await held_up(hub, nodes[0])
    await redis.command("flushall")
    await told(nodes, order, "running")
    gate.release()
    assert (await told(nodes, order))["result"] == "completed"


async def test_without_redis(hub, redis, nodes):
    """The node that is asked works by itself, and says so; the others do not know."""
    image = hub.add_image(APP, "1")
    known(nodes[0], image, "1")
    redis.signal(signal.SIGKILL)
    await eventually(lambda: all(node.services.node.is_alone for node in nodes), "alone")
    status, given = await nodes[0].orders.ask("POST", "/api/v1/sync", {"images": ["app:1"]})
    assert (status, given["untold"]) == (202, "Redis does not answer, so only this node knows of the order")
    state = await nodes[0].orders.ended(given["order"])
    assert (state["result"], state["tags"]) == ("completed", {"unchanged": 1})
    assert "what other nodes have done is not known" in state["cause"]
    status, answer = await nodes[1].orders.ask("GET", f"/api/v1/sync/{given['order']}")
    assert (status, "Redis does not answer" in answer["error"]) == (503, True)


@contextlib.asynccontextmanager
async def load_balancer(nodes):
    """The URL of a load balancer before the admin addresses: each connection goes to the next node."""
    following, tasks = itertools.cycle(nodes), set()

    async def pipe(reader, writer):
        with contextlib.suppress(OSError), contextlib.closing(writer):
            while data := await reader.read(1 << 16):
                writer.write(data)

    async def forward(reader, writer):
        task = asyncio.current_task()
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        try:
            there = await asyncio.open_connection("127.0.0.1", next(following).admin_port)
        except OSError:
            writer.close()
        else:
            await asyncio.gather(pipe(reader, there[1]), pipe(there[0], writer))

    server = await asyncio.start_server(forward, "127.0.0.1", 0)
    try:
        async with server:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.full
async def test_command_behind_load_balancer(hub, nodes, tmp_path):
    """It shows what each node has done, although each of its requests goes to another node, and one of those is gone."""
    old = hub.add_image(APP, "1")
    for node in nodes[:2]:
        known(node, old, "1")
    hub.add_image(APP, "1", layers=[hub.add_synthetic_blob(APP, 1000)])
    async with load_balancer(nodes) as url:
        code, out, complaint = await command("sync", "app:1", "--url", url, directory=tmp_path)
        assert (code, complaint) == (0, "")
        assert out.count("docker.io/library/app:1 at http://127.0.0.1:") == 2
        assert out.count("completed in") == 4
        assert out.splitlines()[-1].startswith("completed in")
        assert ": 2 new or moved; " in out.splitlines()[-1]

        code, out, complaint = await command("sync", "nope", "--url", url, directory=tmp_path)
        assert (code, complaint.partition(":")[0]) == (1, "docker.io/nope")

        order, gate, _ = await held_up(hub, nodes[1], "3")
        watching = asyncio.create_task(command("warm", "app:3", "--url", url, directory=tmp_path))
        nodes[2].stop()
        await nodes[2].stopped()
        gate.release()
        code, out, complaint = await watching
        assert (code, complaint) == (0, ""), out
        assert (await told(nodes[:2], order))["result"] == "completed"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"job": "x", "asked": "1", "owner": "a"},
        {"job": "[" * 50_000, "asked": "1", "owner": "a"},
        {"job": "[]", "asked": "1", "owner": "a"},
        {"job": "{}", "asked": "soon", "owner": "a"},
        {"job": "{}", "asked": "9" * 400, "owner": "a"},
        {"job": "{}", "asked": "1"},
        {"job": "{}", "asked": "1", "owner": "a", "n:a": "later|"},
        {"job": "{}", "asked": "1", "owner": "a", "n:a": "9" * 400 + "|"},
        {"job": "{}", "asked": "1", "owner": "a", "taken": "many"},
    ],
)
async def test_garbage_in_redis(fields, link, server):
    """It is no order of this version."""
    keys = Keys(uuid.uuid4().hex, str)
    orders = SharedOrders(link, keys, "me")
    if fields:
        await server.command("hset", keys.order("1-00000000"), *itertools.chain(*fields.items()))
    assert await orders.read("1-00000000") is None
    if fields and "taken" not in fields:
        await server.command("zadd", keys.orders_for_one, "1", "1-00000000")
        found = await orders.take_over()
        assert found is None or found[0].row == {}


async def test_key_of_another_type(link, server):
    """It is no order: an event that names it must not hold up those behind it."""
    keys = Keys(uuid.uuid4().hex, str)
    await server.command("set", keys.order("1-00000000"), "x")
    assert await SharedOrders(link, keys, "me").read("1-00000000") is None


async def test_same_order_after_one_that_was_cancelled(link):
    """It is another one, although no node has begun the first."""
    orders = SharedOrders(link, Keys(uuid.uuid4().hex, str), "me")
    row = {"kind": "sync", "images": ["app"], "platforms": []}
    assert await orders.add("1-00000000", "all", row) == "1-00000000"
    assert await orders.add("2-00000000", "all", row) == "1-00000000"
    assert await orders.cancel("1-00000000")
    assert await orders.add("3-00000000", "all", row) == "3-00000000"
    assert await orders.add("4-00000000", "all", row) == "3-00000000"


async def test_names_of_no_order(link, server):
    """They hide no other order."""
    keys = Keys(uuid.uuid4().hex, str)
    orders = SharedOrders(link, keys, "me")
    await link.call(Script("redis.call('ZADD', KEYS[1], 1, ARGV[1], 2, 'x', 3, 'y')"), [keys.orders_for_one], b"\xff")
    await server.command("set", keys.order("y"), "of another type")
    await orders.add("1-00000000", "one", {"kind": "warm", "images": [], "platforms": []})
    assert [found.job.name for found in await orders.open_for_one()] == ["1-00000000"]


async def test_one_call_for_all_open_orders(hub, nodes):
    """A list of them asks Redis for no single one."""
    hub.add_image(APP, "1")
    given = await asyncio.gather(*(nodes[0].orders.give("warm", images=[f"app:{tag}"]) for tag in range(20)))
    asked, link = [], nodes[1].services.node.orders._link
    link_call = link.call

    async def call(script, keys, *args):
        asked.extend(name for name in given if any(name in key for key in keys))
        return await link_call(script, keys, *args)

    link.call = call
    status, _ = await nodes[1].orders.ask("GET", "/api/v1/sync")
    assert (status, asked) == (200, [])


@pytest.mark.full
async def test_killed_node(hub, redis, tmp_path):
    """Of real processes: another node takes over what a node was to fetch that is killed, and the first one drops it."""
    hub.auth = "none"
    layer = hub.add_synthetic_blob(APP, 3_000_000)
    hub.add_image(APP, "1", layers=[layer])
    gate = hub.gate(Rule(kind="cdn", reference=layer.digest, times=1), after=1 << 20)
    async with cluster(hub, tmp_path, redis, workers=2, sync={"interval": "0s"}) as (first, second, third):
        order = json.loads(await first.admin("/api/v1/warm", method="POST", images=["app:1"]))["order"]
        await asyncio.wait_for(gate.reached.wait(), LIMIT)

        async def state():
            return json.loads(await third.admin(f"/api/v1/sync/{order}"))

        await eventually(state, "running", holds=lambda found: found["result"] == "running")
        first.kill()
        gate.release()
        ended = await eventually(state, "the end", holds=lambda found: found["result"] not in ("waiting", "running"))
        assert ended["result"] == "completed", ended
        assert ended["nodes"][0]["name"] != f"http://127.0.0.1:{first.node_port}"
        code, out, complaint = await second.command("sync", "--status")
        assert (code, b"running" in out, complaint) == (0, False, b"")
        await first.__aexit__()
        await first.__aenter__()
        await first.logged("sync_ended")
        assert json.loads(await first.admin(f"/api/v1/sync/{order}")) == await state()
