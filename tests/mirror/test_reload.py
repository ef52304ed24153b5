"""A reload replaces what depends on the configuration, and takes nothing from whoever still uses the old one."""

import asyncio
import contextlib
import gc
import time
from unittest import mock

import aiohttp
import pytest

from mirror.core.digest import Digest
from mirror.download.partial import Partial
from mirror.errors import StorageError
from mirror.service import current
from mirror.upstream.http import Http
from tests.fakehub import Rule
from tests.mirror.syncing import APP, Orders
from tests.mirror.transfers import Transfer
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import MIB
from tests.support.slow_files import SlowFile
from tests.support.waiting import LIMIT, eventually


@pytest.fixture
def orders(mirror):
    return Orders(mirror)


@pytest.fixture
async def secured(hub, tmp_path):
    token = tmp_path / "token"
    token.write_text("first")
    async with MirrorUnderTest(hub, tmp_path / "store", admin={"token_file": str(token)}) as mirror:
        mirror.token = token
        assert await admitted(mirror, "first")
        yield mirror


@contextlib.contextmanager
def loads(config):
    """The next reload reads this configuration."""
    with mock.patch("mirror.service.mirror.load", return_value=config), mock.patch("mirror.service.logs.configure"):
        yield


async def admitted(mirror, token):
    """Whether the admin address takes a token."""
    url = f"http://127.0.0.1:{mirror.admin_port}/api/v1/images"
    async with mirror.session.get(url, headers={"Authorization": f"Bearer {token}"}) as response:
        return response.status == 200


@contextlib.contextmanager
def driven_elsewhere(mirror, digest):
    """Hold a blob's driver lock as another process would: downloads of it wait, and send no request."""
    partial = Partial(mirror.store.layout, mirror.store.quota, Digest.parse(digest))
    try:
        assert partial.try_acquire_driver()
        yield
    finally:
        partial.close()


def retired(mirror):
    """How many old graphs are still open."""
    return len(mirror.retired)


def clients(mirror):
    """How many HTTP clients of this mirror there are in memory."""
    gc.collect()
    connections = mirror.services.connections
    return sum(isinstance(thing, Http) and thing._connections is connections for thing in gc.get_objects())


async def forget_cancelled_timers():
    """Have the event loop drop them, with what they were for: it keeps them until they are due, or most of many are cancelled."""
    loop = asyncio.get_running_loop()
    for _ in range(1000):
        loop.call_later(LIMIT, print).cancel()
    await asyncio.sleep(0)


async def reloaded(mirror):
    """Reload, and give whatever is closed too early the time for it."""
    await mirror.reload(tags={"ttl": "1s"})
    assert (await mirror.get("/v2/")).status == 200
    await asyncio.sleep(0)


async def test_download_without_a_request(hub, mirror):
    """A download that has no request under way at a reload can still ask upstream afterwards."""
    blob = hub.add_synthetic_blob(APP, 3 * MIB)
    with driven_elsewhere(mirror, blob.digest):
        pulling = asyncio.create_task(mirror.get(f"/v2/{APP}/blobs/{blob.digest}"))
        await eventually(lambda: len(mirror.downloads), "the download")
        await reloaded(mirror)
    answer = await pulling
    assert (answer.status, answer.sha256) == (200, blob.digest)
    await eventually(lambda: retired(mirror) == 0, "the old graph is closed")


async def test_download_that_nobody_reads(hub, mirror):
    """A download whose clients have left keeps what it needs, too."""
    blob = Transfer(hub, mirror, 3 * MIB)
    gate, first = await blob.started(MIB)
    await first.leave()
    await reloaded(mirror)
    assert retired(mirror) == 1
    gate.release()
    assert await blob.held()
    assert len(blob.fetched()) == 1
    await eventually(lambda: retired(mirror) == 0, "the old graph is closed")


async def test_reader_past_the_store(hub, mirror):
    """A client that came after the reload and goes on past the store uses the connections of the download that it joined."""
    blob = Transfer(hub, mirror, 3 * MIB)
    gate, first = await blob.started(MIB)
    await reloaded(mirror)
    late = await blob.client()
    await late.has(1024)
    mirror.partial(blob.digest).write = full
    gate.release()
    assert await late.whole() == await first.whole() == blob.data
    await eventually(lambda: retired(mirror) == 0, "the old graph is closed")


def full(*_):
    raise StorageError("the disk is full", "full")


async def test_order_between_requests(hub, mirror, orders):
    """An image that is being brought in sync at a reload is brought to its end."""
    image = hub.add_image(APP, "1", layers=[b"one" * 1000, b"two" * 1000])
    with driven_elsewhere(mirror, image.config.digest):
        order = await orders.give("warm", images=["app:1"])
        await eventually(lambda: len(mirror.downloads), "its first blob")
        await reloaded(mirror)
    ended = await orders.ended(order)
    assert (ended["result"], ended["problems"]) == ("completed", {})
    assert all(mirror.holds(part.digest) for part in (image.config, *image.layers))
    await eventually(lambda: retired(mirror) == 0, "the old graph is closed")


async def test_plan_between_requests(hub, mirror, orders):
    """An order that asks for lists of tags at a reload gets all of them."""
    for number in range(3):
        hub.add_image(APP, f"{number}")
    hub.add_image("library/other", "1")
    gate = hub.gate(Rule(kind="tags", repository=APP))
    order = await orders.give("warm", images=["app:*", "other:*"])
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    await reloaded(mirror)
    gate.release()
    assert (await orders.ended(order))["tags"] == {"moved": 4}


async def test_many_reloads(hub, mirror):
    """What is left of many reloads is what is used: the graph of a download, until that has ended, and the current one."""
    blob = Transfer(hub, mirror, 3 * MIB)
    gate, first = await blob.started(MIB)
    for number in range(50):
        await mirror.reload(tags={"ttl": f"{number + 1}s"})
    assert retired(mirror) <= 2
    await eventually(lambda: retired(mirror) == 1, "all but one are closed")
    gate.release()
    assert await first.whole() == blob.data
    await eventually(lambda: retired(mirror) == 0, "the last one is closed")
    await eventually(lambda: not mirror.downloads, "the download has ended")
    await forget_cancelled_timers()
    await eventually(lambda: clients(mirror) == 1, "nothing keeps the others in memory")


async def test_bound(hub, mirror, monkeypatch):
    """Whoever does not let go of an old graph has it closed all the same, in the end."""
    monkeypatch.setattr(current, "_MAX_RETIRED_S", 0.2)
    blob = Transfer(hub, mirror, 3 * MIB)
    gate, first = await blob.started(MIB)
    await reloaded(mirror)
    await eventually(lambda: retired(mirror) == 0, "the old graph is closed")
    gate.release()
    with pytest.raises(aiohttp.ClientPayloadError):
        await first.whole()
    await first.leave()


async def test_reloads_at_once(mirror):
    """Reloads that come at once are done one after the other: what was read last counts, however long reading takes."""
    configs = []
    for seconds in range(1, 6):
        mirror.settings["tags"] = {"ttl": f"{seconds}s"}
        configs.append(mirror.config())

    def load(_):
        config = configs.pop(0)
        time.sleep(0.02 * len(configs))
        return config

    with mock.patch("mirror.service.mirror.load", load), mock.patch("mirror.service.logs.configure"):
        await asyncio.gather(*(mirror.mirror.reload() for _ in range(5)))
    assert mirror.graph.config.tags.ttl == 5.0
    await eventually(lambda: retired(mirror) == 0, "the others are closed")


async def test_slow_token_file(secured):
    """While the disk keeps the admin token waiting, everything else is answered; then the new one counts."""
    config = secured.config()
    secured.token.write_text("second")
    with SlowFile(secured.token) as file, loads(config):
        reload = asyncio.create_task(secured.mirror.reload())
        await asyncio.to_thread(file.opened.wait, LIMIT)
        assert (await secured.get("/v2/")).status == 200
        assert await admitted(secured, "first")
        file.release()
        await reload
    assert not file.gave_up
    assert (await admitted(secured, "first"), await admitted(secured, "second")) == (False, True)


@pytest.mark.parametrize("content", [b"\n", b"\xff", None])
async def test_useless_token_file(secured, content, log):
    """An admin token that cannot be read when it is to be used refuses the whole configuration: the old one counts."""
    config = secured.config()
    secured.token.unlink() if content is None else secured.token.write_bytes(content)
    with loads(config):
        await secured.mirror.reload()
    (refused,) = [event for event in log if event["event"] == "configuration_refused"]
    assert refused["problems"][0].startswith(f"admin.token_file: {secured.token} ")
    assert await admitted(secured, "first")
    assert not await admitted(secured, "")
