"""The link to a real Redis: bounded calls, and what a Redis that answers, but refuses, leads to."""

import asyncio
import contextlib
import signal

import pytest
import structlog

from mirror.cluster.link import LinkDown, Script
from tests.e2e.harness.cluster import RedisServer, running_link
from tests.support.waiting import LIMIT, SOON, eventually

pytestmark = pytest.mark.e2e

ONE, WRITE = Script("return 1"), Script("return redis.call('SET', KEYS[1], 'x')")


async def test_first_call_waits_for_the_connection(server):
    """A node that has just started asks, too, instead of fetching by itself."""
    async with running_link(server.url) as link:
        assert await link.call(ONE, []) == 1


async def test_no_call_waits_once_redis_is_known_to_be_away():
    """The first probe has failed: nobody waits for the next one."""
    async with running_link("redis://127.0.0.1:1/0") as link:
        with pytest.raises(LinkDown, match="is not asked for now"):
            await link.call(ONE, [])
        began = asyncio.get_running_loop().time()
        with pytest.raises(LinkDown):
            await link.call(ONE, [])
        assert asyncio.get_running_loop().time() - began < 2.0


async def test_probe_does_not_wait_for_its_turn(redis):
    """After a long failure the next probe is half a minute away; who has to know is told at once."""
    async with running_link(redis.url) as link:
        await eventually(lambda: link.is_up)
        redis.signal(signal.SIGKILL)
        for _ in range(3):
            with pytest.raises(LinkDown):
                await link.call(Script("return 1"), [])
        for _ in range(4):
            await link.probe()
            assert not link.is_up
        redis.start()
        # By itself it would be probed in eight seconds or more.
        began = asyncio.get_running_loop().time()
        await link.probe()
        assert link.is_up
        assert asyncio.get_running_loop().time() - began < 5.0


async def test_connections_that_redis_closes_cost_nothing(link, server):
    """Redis closes idle ones at times."""
    echo = Script("return ARGV[1]")
    for number in range(3):
        assert await link.call(echo, [], str(number)) == str(number).encode()
        await server.command("client", "kill", "type", "normal")
    assert link.is_up


async def test_full_redis_is_no_dead_one(link, server):
    """Writes fail, and this node goes on by itself; the link stays, and the log says why."""
    await server.command("config", "set", "maxmemory", "1")
    try:
        with structlog.testing.capture_logs() as lines:
            for _ in range(5):
                with pytest.raises(LinkDown):
                    await link.call(WRITE, ["key"])
        assert await link.call(Script("return redis.call('GET', KEYS[1])"), ["nothing"]) is None
        assert link.is_up
        (line,) = lines
        assert line["event"] == "redis_refused"
        assert "maxmemory" in line["cause"]
        # A node that starts now joins as well.
        async with running_link(server.url) as other:
            assert await other.call(ONE, []) == 1
    finally:
        await server.command("config", "set", "maxmemory", "0")


async def test_call_to_a_stopped_redis_is_bounded(redis):
    """Three calls wait for their limit; then none does, until Redis answers again."""
    async with running_link(redis.url, 0.25) as link:
        await eventually(lambda: link.is_up)
        redis.signal(signal.SIGSTOP)
        for _ in range(3):
            with pytest.raises(LinkDown):
                await link.call(ONE, [])
        assert not link.is_up
        with pytest.raises(LinkDown, match="is not asked for now"):
            await link.call(ONE, [])
        redis.signal(signal.SIGCONT)
        await eventually(lambda: link.is_up)
        assert await link.call(ONE, []) == 1


async def test_cancelled_calls_end(link):
    """At whichever step of the client of Redis the cancellation comes: a node that stops does not wait for it.

    The client drops a cancellation that comes in the moment in which a command has been sent.
    """

    async def calls():
        while True:
            await link.call(ONE, [])

    for step in range(60):
        calling = asyncio.create_task(calls())
        for _ in range(step):
            await asyncio.sleep(0)
        calling.cancel()
        ended, _ = await asyncio.wait([calling], timeout=SOON)
        assert ended, f"after {step} steps of the loop"


async def test_cancelled_waits_end_at_once(link):
    """A node that stops does not wait until the wait for an event is over."""
    await link.call(Script("return redis.call('XADD', KEYS[1], '1-1', 'kind', 'begin')"), ["events"])
    for step in range(30):
        waiting = asyncio.create_task(link.wait_for_entry("events", "1-1", LIMIT))
        for _ in range(step):
            await asyncio.sleep(0)
        waiting.cancel()
        ended, _ = await asyncio.wait([waiting], timeout=SOON)
        assert ended, f"after {step} steps of the loop"


@pytest.mark.parametrize("steps", [1, 4, 16])
async def test_close_waits_for_calls_under_way(redis, steps):
    """They are answered, and leave no connection behind."""
    async with running_link(redis.url) as link:
        await eventually(lambda: link.is_up)
        calls = [asyncio.create_task(link.call(ONE, [])) for _ in range(8)]
        for _ in range(steps):
            await asyncio.sleep(0)
    assert await asyncio.gather(*calls) == [1] * 8
    assert sum(word.startswith("id=") for word in await redis.command("client", "list")) == 1


async def test_redis_that_has_become_a_replica(redis):
    """It takes no writes any more, so the node is by itself, and says so, until it can write again."""
    async with running_link(redis.url) as link:
        await eventually(lambda: link.is_up)
        await redis.command("replicaof", "127.0.0.1", "1")
        with structlog.testing.capture_logs() as lines:
            with pytest.raises(LinkDown):
                await link.call(WRITE, ["key"])
            assert not link.is_up
            with pytest.raises(LinkDown, match="is not asked for now"):
                await link.call(WRITE, ["key"])
        assert [line["event"] for line in lines] == ["cluster_alone"]
        assert "read only replica" in lines[0]["cause"]
        await redis.command("replicaof", "no", "one")
        await eventually(lambda: link.is_up)
        await link.call(WRITE, ["key"])


async def test_user_without_the_rights(redis):
    """A node that may not run scripts does not join."""
    await redis.command("acl", "setuser", "default", "-eval", "-evalsha")
    async with running_link(redis.url) as link:
        with structlog.testing.capture_logs() as lines, pytest.raises(LinkDown, match="is not asked for now"):
            await link.call(ONE, [])
        assert [line["event"] for line in lines] == ["cluster_alone"]
        assert "permissions" in lines[0]["cause"]


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"wrong", None])
async def test_password_file_that_is_of_no_use(content, redis, tmp_path):
    """The node is by itself until the file is right; nothing else of it ends."""
    await redis.command("config", "set", "requirepass", "right")
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    async with running_link(redis.url, password_file=path) as link:
        with structlog.testing.capture_logs() as lines, pytest.raises(LinkDown):
            await link.call(ONE, [])
        assert [line["event"] for line in lines] == ["cluster_alone"]
        path.write_text("right\n")
        await eventually(lambda: link.is_up)
        assert await link.call(ONE, []) == 1


async def test_redis_cluster(tmp_path):
    """The server of the address does not have the keys: the link follows to the one that does, and back when that has died."""
    with contextlib.ExitStack() as stack:
        servers, options = [], ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000")
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            servers.append(stack.enter_context(contextlib.closing(RedisServer(tmp_path / name, *options))))
            await servers[-1].command("cluster", "set-config-epoch", str(len(servers)))
        first, second = servers
        await second.command("cluster", "addslotsrange", "0", "16383")
        await first.command("cluster", "meet", "127.0.0.1", str(second.port))
        for server in servers:
            await eventually(lambda server=server: server.command("cluster", "info"), "joined", holds=is_joined)
        async with running_link(first.url) as link:
            await link.call(WRITE, ["key"])
            assert await second.command("get", "key") == ["x"]
            (name,) = await second.command("cluster", "myid")
            second.signal(signal.SIGKILL)
            await first.command("cluster", "forget", name)
            await first.command("cluster", "addslotsrange", "0", "16383")
            await eventually(lambda: written(link), "back")
            assert await first.command("get", "key") == ["x"]


def is_joined(words):
    """Whether a server says that all slots are served."""
    return "cluster_state:ok" in words


async def written(link):
    """Whether a write has succeeded."""
    await link.probe()
    with contextlib.suppress(LinkDown):
        await link.call(WRITE, ["key"])
        return True
    return False
