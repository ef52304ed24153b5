"""Who gets the connections to upstreams when there are not enough: nobody has all of them, and nobody waits for ever."""

import asyncio
import contextlib

import aiohttp
import pytest

from mirror.download import shares
from tests.fakehub import NoHeaders, Rule
from tests.mirror.syncing import Orders
from tests.mirror.transfers import Transfer
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, KIB, MIB, blob_path, manifest_path
from tests.support.waiting import LIMIT, SOON, eventually

OTHER = "127.0.0.9"


@pytest.fixture
async def start(hub, tmp_path):
    """Starts a mirror with so many connections to upstreams."""
    async with contextlib.AsyncExitStack() as stack:

        async def begin(connections, limits=None, **settings):
            downloads = {"max_upstream_connections": connections, **settings.pop("downloads", {})}
            under_test = MirrorUnderTest(hub, tmp_path / "store", downloads=downloads, limits=limits or {}, **settings)
            return await stack.enter_async_context(under_test)

        yield begin


@contextlib.asynccontextmanager
async def at_address(address):
    """A client of another address."""
    connector = aiohttp.TCPConnector(local_addr=(address, 0))
    async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=LIMIT)) as session:
        yield session


async def whole(session, mirror, blob):
    async with session.get(mirror.url(blob_path(blob))) as answer:
        return answer.status, await answer.read()


def blobs(hub, count, size=2 * MIB):
    return [hub.add_synthetic_blob(APP, size, seed=seed) for seed in range(1, count + 1)]


def held_at_upstream(hub, found, after=64 * KIB):
    """Holds what upstream sends of these blobs."""
    return [hub.gate(Rule(host="cdn", reference=blob.digest, times=None), after=after) for blob in found]


def downloads(mirror):
    return list(mirror.downloads)


async def test_client_leaves_while_upstream_is_silent(hub, mirror):
    """That a client has gone is noticed at once, and not when there is a byte to send to it."""
    blob = Transfer(hub, mirror, 3 * MIB)
    gate, first = await blob.started(MIB)
    async with asyncio.timeout(SOON):
        await first.leave()
        await eventually(lambda: mirror.downloads.readers == 0)
    gate.release()
    assert await blob.held()


async def test_client_leaves_before_the_first_byte(hub, mirror):
    """The same for one that waits for the headers."""
    blob = Transfer(hub, mirror, 3 * MIB)
    gate = hub.gate(Rule(host="cdn", times=None), after=0)
    asking = asyncio.create_task(blob.get())
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    asking.cancel()
    async with asyncio.timeout(SOON):
        await eventually(lambda: mirror.downloads.readers == 0)
    gate.release()
    assert await blob.held()


@pytest.mark.parametrize("address", ["127.0.0.1", OTHER])
async def test_those_who_left_make_way(hub, start, address):
    """Downloads that nobody reads give their connections to a client, of the same address or another, and are completed later."""
    mirror = await start(4, {"downloads_per_address": 4})
    left, wanted = blobs(hub, 4), hub.add_synthetic_blob(APP, MIB, seed=99)
    gates = held_at_upstream(hub, left)
    asking = [asyncio.create_task(mirror.get(blob_path(blob))) for blob in left]
    for gate in gates:
        await asyncio.wait_for(gate.reached.wait(), LIMIT)
    for task in asking:
        task.cancel()
    await eventually(lambda: mirror.downloads.readers == 0)
    async with at_address(address) as session, asyncio.timeout(LIMIT):
        status, body = await whole(session, mirror, wanted)
    assert (status, len(body)) == (200, MIB)
    for gate in gates:
        gate.release()
    await mirror.idle()
    # At most half of the connections are spent on what clients have left.
    assert sum(mirror.holds(blob.digest) for blob in left) == 2
    for blob in left:
        assert (await mirror.get(blob_path(blob))).sha256 == blob.digest


async def test_those_who_wait_for_headers_make_way(hub, start):
    """The same while upstream has not even answered, and is asked twice."""
    mirror = await start(2)
    mirror.set_limits(hedge=0.05)
    left, wanted = blobs(hub, 2)
    faults = [NoHeaders(), NoHeaders()]
    for fault in faults:
        hub.script(Rule(host="cdn", reference=left.digest), fault)
    asking = asyncio.create_task(mirror.get(blob_path(left)))
    for fault in faults:
        await asyncio.wait_for(fault.reached.wait(), LIMIT)
    asking.cancel()
    await eventually(lambda: mirror.downloads.readers == 0)
    async with asyncio.timeout(LIMIT):
        assert (await mirror.get(blob_path(wanted))).sha256 == wanted.digest
    for fault in faults:
        fault.release()
    await mirror.idle()
    assert mirror.holds(left.digest)


async def test_who_comes_back_counts(hub, start):
    """A download that somebody reads again does not make way any more."""
    mirror = await start(1)
    (blob, other) = blobs(hub, 2)
    (gate,) = held_at_upstream(hub, [blob])
    asking = asyncio.create_task(mirror.get(blob_path(blob)))
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    asking.cancel()
    await eventually(lambda: mirror.downloads.readers == 0)
    again = asyncio.create_task(mirror.get(blob_path(blob)))
    await eventually(lambda: mirror.downloads.readers == 1)
    async with at_address(OTHER) as session:
        waiting = asyncio.create_task(whole(session, mirror, other))
        await eventually(lambda: len(downloads(mirror)) == 2)
        gate.release()
        assert (await again).sha256 == blob.digest
        assert (await waiting)[0] == 200
    assert hub.count("GET", host="cdn", reference=blob.digest) == 1


async def test_one_address_has_its_share(hub, start):
    """Half of the connections is for one address; another one is served at once, and the first goes on as its downloads end."""
    mirror = await start(4)
    mine = blobs(hub, 3)
    gates = held_at_upstream(hub, mine)
    other = hub.add_synthetic_blob(APP, MIB, seed=99)
    asking = [asyncio.create_task(mirror.get(blob_path(blob))) for blob in mine]
    await eventually(lambda: len(downloads(mirror)) == 2)
    async with at_address(OTHER) as session:
        assert (await whole(session, mirror, other))[0] == 200
    assert len([download for download in downloads(mirror) if str(download.digest) != other.digest]) == 2
    for gate in gates:
        gate.release()
    assert sorted([(await task).sha256 for task in asking]) == sorted(blob.digest for blob in mine)


async def test_share_that_is_used_up(hub, start, monkeypatch):
    """Whoever has used up the share for too long is refused, counted, and may go on with what is held or under way."""
    monkeypatch.setattr(shares, "_TIMEOUT_S", 0.2)
    mirror = await start(4, {"downloads_per_address": 1})
    held, blob, more = blobs(hub, 3)
    assert (await mirror.get(blob_path(held))).status == 200
    await mirror.idle()
    (gate,) = held_at_upstream(hub, [blob])
    asking = asyncio.create_task(mirror.get(blob_path(blob)))
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    refused = await mirror.get(blob_path(more))
    assert (refused.status, refused.code(), refused.headers["Retry-After"]) == (429, "TOOMANYREQUESTS", "1")
    assert b"downloads_per_address" in refused.body
    assert await mirror.metric("refused_total", reason="downloads") == 1
    assert (await mirror.get(blob_path(held))).cache == "HIT"
    joined = asyncio.create_task(mirror.get(blob_path(blob)))
    await eventually(lambda: mirror.downloads.readers == 2)
    gate.release()
    assert ((await asking).cache, (await joined).cache) == ("MISS", "JOINED")
    assert (await mirror.get(blob_path(more))).status == 200


async def test_sync_makes_way_for_clients(hub, start):
    """What an order fetches gives its connection to a client, and is fetched to its end afterwards."""
    mirror = await start(1)
    orders = Orders(mirror)
    image = hub.add_image(APP, "1", layers=[b"layer" * 100 * KIB])
    (gate,) = held_at_upstream(hub, [image.layers[0]])
    order = await orders.give("warm", images=["app:1"])
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    wanted = hub.add_synthetic_blob(APP, MIB, seed=99)
    async with asyncio.timeout(LIMIT):
        assert (await mirror.get(blob_path(wanted))).sha256 == wanted.digest
    gate.release()
    assert (await orders.ended(order))["result"] == "completed"
    assert mirror.holds(image.layers[0].digest)


async def test_clients_come_before_prefetching(hub, start):
    """Prefetching gives its connection to a client that asks for something else."""
    mirror = await start(2, downloads={"prefetch": True})
    image = hub.add_image(APP, "1", layers=[b"layer" * 100 * KIB])
    gates = held_at_upstream(hub, [image.config, *image.layers], after=0)
    other = blobs(hub, 1)
    (busy,) = held_at_upstream(hub, other)
    async with at_address(OTHER) as session:
        reading = asyncio.create_task(whole(session, mirror, other[0]))
        await asyncio.wait_for(busy.reached.wait(), LIMIT)
        await mirror.get(manifest_path("1"))
        await asyncio.wait_for(gates[0].reached.wait(), LIMIT)
        wanted = hub.add_synthetic_blob(APP, MIB, seed=99)
        async with asyncio.timeout(LIMIT):
            assert (await mirror.get(blob_path(wanted))).sha256 == wanted.digest
        for gate in (busy, *gates):
            gate.release()
        assert (await reading)[0] == 200
    await mirror.idle()


async def test_question_does_not_wait_for_bodies(hub, start):
    """Whether a blob may be had is asked of upstream although all connections for bodies are in use."""
    mirror = await start(1)
    blob, asked = blobs(hub, 2)
    (gate,) = held_at_upstream(hub, [blob])
    reading = asyncio.create_task(mirror.get(blob_path(blob)))
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    async with asyncio.timeout(LIMIT):
        assert (await mirror.head(blob_path(asked))).headers["Content-Length"] == str(2 * MIB)
    gate.release()
    assert (await reading).status == 200


async def test_what_was_read_to_its_end_is_kept(hub, start):
    """However much has been left before, a blob that a client has got whole comes into the store."""
    mirror = await start(2, {"downloads_per_address": 2})
    left, *others = blobs(hub, 6)
    (gate,) = held_at_upstream(hub, [left])
    asking = asyncio.create_task(mirror.get(blob_path(left)))
    await asyncio.wait_for(gate.reached.wait(), LIMIT)
    asking.cancel()
    await eventually(lambda: mirror.downloads.readers == 0)
    for blob in others:
        assert (await mirror.get(blob_path(blob))).sha256 == blob.digest
    gate.release()
    await mirror.idle()
    assert all(mirror.holds(blob.digest) for blob in (left, *others))


async def test_limit_is_kept(hub, start):
    """Whatever comes and goes, upstream never sees more requests for blobs at a time than it may."""
    mirror = await start(3, {"downloads_per_address": 3})
    found = blobs(hub, 12, size=200 * KIB)
    hub.latency = 0.01
    answers = await asyncio.gather(*(mirror.get(blob_path(blob)) for blob in found))
    assert [answer.sha256 for answer in answers] == [blob.digest for blob in found]
    assert mirror.services.group.counts.count(1).total == 0


async def test_limit_after_a_reload(hub, start):
    """More connections in the configuration count at once, for those that wait already, too."""
    mirror = await start(1, {"downloads_per_address": 9})
    found = blobs(hub, 2)
    gates = held_at_upstream(hub, found)
    asking = [asyncio.create_task(mirror.get(blob_path(blob))) for blob in found]
    await eventually(lambda: len(downloads(mirror)) == 2)
    await mirror.reload(downloads={"max_upstream_connections": 2})
    for gate in gates:
        await asyncio.wait_for(gate.reached.wait(), LIMIT)
        gate.release()
    assert [(await task).status for task in asking] == [200, 200]
