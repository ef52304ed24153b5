"""Nodes with the same account: upstream sees a wrong password once, from one of them, and a right one without a delay."""

import asyncio
import contextlib
import signal
import types
import uuid

import pytest

from mirror.cluster.accounts import SharedAccount, SharedAccounts
from mirror.cluster.keys import Keys
from mirror.cluster.news import News
from mirror.upstream.login import Credentials
from tests.e2e.harness.cluster import Node
from tests.e2e.harness.whole_nodes import WholeNode
from tests.fakehub import NoHeaders, Rule, Status
from tests.support.names import APP
from tests.support.waiting import LIMIT, eventually

pytestmark = pytest.mark.e2e

RIGHT, WRONG = "correct-horse-battery", "wrong-horse-battery"
ANOTHER_NODE = "refused (another node tried): check username and password_file"


@pytest.fixture
def nodes(hub, redis, tmp_path):
    """Makes two nodes, each with a password file of its own that holds the same."""
    hub.users = {"robot": RIGHT}

    def make(kind, password):
        return [node(kind, number, password) for number in range(2)]

    def node(kind, number, password):
        file = tmp_path / f"password-{number}"
        file.write_text(password)
        entry = {"upstreams": [hub.url], "token_hosts": [hub.token_host], "username": "robot", "password_file": str(file)}
        made = kind(hub, tmp_path / f"node-{number}", redis, registries={"docker.io": entry})
        made.password = file
        return made

    return make


@contextlib.asynccontextmanager
async def running(nodes):
    """All of them have joined, and asked upstream for the first time."""
    async with contextlib.AsyncExitStack() as stack:
        await asyncio.gather(*(stack.enter_async_context(node) for node in nodes))
        await asyncio.gather(*(node.joined() for node in nodes))
        yield nodes


def logins(hub):
    """Requests for a token with the account."""
    return [seen for seen in hub.find(kind="token") if seen.authorization]


def manifest(number):
    """The path of an image in a repository of its own, which needs a token of its own."""
    return f"/v2/{APP}{number}/manifests/1"


async def statuses(node, first=0):
    """The status of an answer of each worker, for an image of its own, from a number on."""
    found = []
    for number, worker in enumerate(node.workers(), first):
        pull = await node.pull(manifest(number), worker)
        await pull.rest()
        found.append(pull.status)
    return found


async def problems(node):
    """What /readyz says of the account; nothing while the node is ready."""
    return (await node.ready())[1]["credentials"]


async def told(redis):
    """Wait until Redis knows that the account is refused."""
    await eventually(lambda: redis.command("keys", "*:ac:*"), "the key")
    (key,) = await redis.command("keys", "*:ac:*")
    await eventually(lambda: redis.command("hget", key, "count"), "refused", holds=lambda seen: seen not in ([], ["0"]))
    return key


async def test_processes_that_start_with_a_wrong_password(hub, redis, nodes):
    """Of two nodes that ask at once, and their four workers, one shows it. A new password of one node is used there at once."""
    for number in range(4):
        hub.add_image(f"{APP}{number}", "1")
    async with running(nodes(Node, WRONG)) as (first, second):
        for node in (first, second):
            await node.logged("upstreams_checked")
        assert len(logins(hub)) == 1
        for node in (first, second):
            assert list(await eventually(lambda node=node: problems(node), "unready")) == ["docker.io"]
            assert await statuses(node) == [503, 503]
        assert len(logins(hub)) == 1
        key = await told(redis)
        everything = key + " ".join(await redis.command("hgetall", key))
        assert WRONG not in everything
        assert "robot" not in everything

        first.password.write_text(RIGHT)
        assert await statuses(first) == [200, 200]
        await eventually(lambda: problems(first), "ready", holds=lambda seen: not seen)
        # What the first node has got, it gives to the second one.
        assert await statuses(second, 2) == [503, 503]
        assert len([seen for seen in logins(hub) if seen.status == 401]) == 1


async def test_processes_that_start_with_a_right_password(hub, nodes):
    """While one shows it the others wait; all are ready, and pull."""
    for number in range(2):
        hub.add_image(f"{APP}{number}", "1")
    held = NoHeaders()
    hub.script(Rule(kind="token"), held)
    async with running(nodes(Node, RIGHT)) as (first, second):
        await asyncio.wait_for(held.reached.wait(), LIMIT)
        held.release()
        for node in (first, second):
            await node.logged("upstreams_checked")
            assert await statuses(node) == [200, 200]
            assert await problems(node) == {}


@pytest.fixture
async def whole(hub, nodes):
    """Two nodes of one process that upstream has accepted, and images that need tokens."""
    for number in range(4):
        hub.add_image(f"{APP}{number}", "1")
    async with running(nodes(WholeNode, RIGHT)) as found:
        for node in found:
            assert (await node.get(manifest(0))).status == 200
        hub.reset_counters()
        yield found


async def test_password_that_upstream_refuses_one_day(hub, redis, whole):
    """A node that was accepted before does not show it any more after an event, until the pause has ended."""
    first, second = whole
    hub.users = {"robot": "another"}
    news = second.services.node.upstreams.news
    before = news.number
    assert (await first.get(manifest(1))).status == 503
    key = await told(redis)
    await eventually(lambda: news.number, "news", holds=lambda number: number != before)
    assert (await second.get(manifest(2))).status == 503
    assert len(logins(hub)) == 1
    login = second.upstream().login
    assert login.problem == ANOTHER_NODE
    assert 0 < login.wait <= 60

    # The pause ends for both; the one that comes first tries, and the next pause is longer for both.
    clock = asyncio.get_running_loop().time
    for node in whole:
        node.upstream().login.clock = lambda: clock() + 60
    await redis.command("hset", key, "until", "1")
    assert (await second.get(manifest(2))).status == 503
    await eventually(lambda: redis.command("hget", key, "count"), "refused again", holds=lambda seen: seen == ["2"])
    assert (await first.get(manifest(1))).status == 503
    assert len(logins(hub)) == 2
    for node in whole:
        assert 60 < node.upstream().login.wait <= 120


async def test_reload_tries_once(hub, redis, whole):
    """A reload of both nodes, after which upstream is asked again by one of them."""
    first, second = whole
    hub.users = {"robot": "another"}
    assert (await first.get(manifest(1))).status == 503
    key = await told(redis)
    await redis.command("hset", key, "at", "1")
    for node in whole:
        await node.reload()
    assert (await second.get(manifest(2))).status == 503
    await eventually(lambda: redis.command("hget", key, "at"), "told", holds=lambda seen: seen != ["1"])
    assert (await first.get(manifest(1))).status == 503
    assert len(logins(hub)) == 2


async def test_turn_without_an_outcome(hub, redis, nodes):
    """A token host that is out of order says nothing of the account: another node does not wait for that."""
    hub.script(Rule(kind="token", times=None), Status(503))
    async with running(nodes(WholeNode, RIGHT)) as (first, second):
        for number, node in enumerate((first, second), 1):
            assert (await node.get(manifest(number))).status == 503
            (key,) = await redis.command("keys", "*:ac:*") or [""]
            await eventually(lambda key=key: redis.command("hget", key, "turn"), "the end", holds=lambda seen: seen == [])
        assert len({seen.path for seen in hub.find(kind="token", status=503)}) == 1


async def test_clock_of_redis_is_set_back(link, server):
    """Or another server with another clock takes its place: a refusal from the future counts no more, however long its pause."""
    keys, credentials = Keys(uuid.uuid4().hex, str), Credentials("robot", WRONG)
    secret, news = types.SimpleNamespace(name=lambda *_: "mac"), News(link, keys, "me", types.SimpleNamespace(total=0))
    shared = SharedAccount(SharedAccounts(news, secret, "me 0"), "docker.io", "up", None)
    key = keys.account("docker.io", "up", "mac")
    seconds, _ = await server.command("time")
    for ahead_s, is_refused in ((0, True), (86_400, False)):
        at = (int(seconds) + ahead_s) * 1000
        await server.command("hset", key, "at", str(at), "until", str(at + 3_600_000), "count", "3")
        found = await shared.ask(credentials, takes_turn=True)
        assert (found.count, found.wait > 0) == (3, is_refused)


async def test_without_redis_each_node_tries_itself(hub, redis, whole):
    first, second = whole
    redis.signal(signal.SIGKILL)
    for node in whole:
        await eventually(lambda node=node: node.services.node.is_alone, "alone")
    hub.users = {"robot": "another"}
    for node in (first, second, first, second):
        assert (await node.get(manifest(1))).status == 503
    assert len(logins(hub)) == 2


async def test_settled_logins_ask_redis_nothing(whole):
    """Not for a hit, nor for a new token; for the latter only after news."""
    first, _ = whole
    link, asked = first.services.node.link, []
    call = link.call

    async def counted(script, keys, *arguments):
        asked.extend(key for key in keys if ":ac:" in key)
        return await call(script, keys, *arguments)

    link.call = counted
    for number in (0, 1):
        assert (await first.get(manifest(number))).status == 200
    assert asked == []
    first.services.node.upstreams.news.add()
    for number in (2, 3):
        assert (await first.get(manifest(number))).status == 200
    assert len(asked) == 1
