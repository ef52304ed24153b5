"""Limits are the mirror's, whichever of its workers is asked, and a worker that is killed takes nothing with it."""

import asyncio
import contextlib
import json
import os
import signal

import pytest

from tests.fakehub import Rule
from tests.support.names import KIB, MIB, blob_path, sha256
from tests.support.waiting import LIMIT, eventually
from tests.workers.cluster import Cluster

APP = "library/app"


@pytest.fixture
async def start(hub, tmp_path):
    """Starts two workers with these limits."""
    async with contextlib.AsyncExitStack() as stack:

        async def begin(upstream=64, **limits):
            downloads = {"max_upstream_connections": upstream, "stall_timeout": "60s", "prefetch": False}
            cluster = Cluster(hub, tmp_path, downloads=downloads, limits=limits)
            await stack.enter_async_context(cluster)
            return cluster, cluster.workers()

        yield begin


class Held:
    """Blobs of which upstream holds the bodies back."""

    def __init__(self, hub, count):
        self._hub = hub
        self.blobs = [hub.add_synthetic_blob(APP, 2 * MIB, seed) for seed in range(1, count + 1)]
        self.gates = [hub.gate(Rule(host="cdn", reference=blob.digest, times=None), after=64 * KIB) for blob in self.blobs]

    async def reached(self, *numbers):
        for number in numbers:
            await asyncio.wait_for(self.gates[number].reached.wait(), LIMIT)

    def release(self):
        for gate in self.gates:
            gate.release()

    def asked(self):
        return self._hub.count("GET", host="cdn")


async def finished(held, pulls):
    held.release()
    digests = {sha256(await pull.rest()) for pull in pulls}
    assert digests <= {blob.digest for blob in held.blobs}
    assert len(digests) == len(pulls)


async def test_one_worker_may_have_all(hub, start):
    """A worker whose others are idle has all connections to upstreams, and not its share of them."""
    cluster, (worker, _) = await start(2, downloads_per_address=2)
    held = Held(hub, 2)
    pulls = [await cluster.pull(blob_path(blob), worker) for blob in held.blobs]
    await held.reached(0, 1)
    await finished(held, pulls)


async def test_all_together_have_no_more(hub, start):
    """With all connections in one worker the other waits, and goes on as soon as one is free."""
    cluster, (one, other) = await start(2, downloads_per_address=3)
    held = Held(hub, 3)
    pulls = [await cluster.pull(blob_path(blob), one) for blob in held.blobs[:2]]
    await held.reached(0, 1)
    pulls.append(await cluster.pull(blob_path(held.blobs[2]), other))
    await eventually(lambda: len(cluster.files("partial/sha256")) >= 5, "the third download")
    assert held.asked() == 2
    held.gates[0].release()
    await held.reached(2)
    await finished(held, pulls)


async def test_killed_worker_gives_back(hub, start):
    """kill -9 of the worker that has all connections, and has begun all that its client may, leaves them to the other one."""
    cluster, (one, other) = await start(2, downloads_per_address=2)
    held = Held(hub, 2)
    lost = [await cluster.pull(blob_path(blob), one) for blob in held.blobs]
    await held.reached(0, 1)
    os.kill(one, signal.SIGKILL)
    await cluster.logged('"worker_died"')
    more = hub.add_synthetic_blob(APP, MIB, 99)
    async with asyncio.timeout(LIMIT):
        assert sha256(await (await cluster.pull(blob_path(more), other)).rest()) == more.digest
    held.release()
    for pull in lost:
        await pull.close()


async def test_kill_after_kill(hub, start):
    """However many workers are killed in the middle, nothing of what they had counted stays."""
    kills = 2
    cluster, _ = await start(1, downloads_per_address=1, connections=3)
    held = Held(hub, kills)
    for number in range(kills):
        _, victim = cluster.workers()
        lost = await cluster.pull(blob_path(held.blobs[number]), victim)
        await held.reached(number)
        os.kill(victim, signal.SIGKILL)
        await eventually(lambda victim=victim: len(set(cluster.workers()) - {victim}) == 2, "another worker")
        await cluster.logged('"serving"', 3 + number)
        held.gates[number].release()
        await lost.close()
    for blob in held.blobs:
        async with asyncio.timeout(LIMIT):
            assert sha256(await (await cluster.pull(blob_path(blob))).rest()) == blob.digest


async def test_those_who_left_make_way_for_other_workers(hub, start):
    """Downloads that nobody reads give their connections to a client of another worker."""
    cluster, (one, other) = await start(2, downloads_per_address=2)
    held = Held(hub, 2)
    pulls = [await cluster.pull(blob_path(blob), one) for blob in held.blobs]
    await held.reached(0, 1)
    for pull in pulls:
        await pull.close()
    wanted = hub.add_synthetic_blob(APP, MIB, 99)
    async with asyncio.timeout(LIMIT):
        assert sha256(await (await cluster.pull(blob_path(wanted), other)).rest()) == wanted.digest
    held.release()


async def test_who_is_read_in_another_worker_stays(hub, start):
    """A download that clients of another worker read keeps its connection, though nobody reads it where it is driven."""
    cluster, (one, other) = await start(1, downloads_per_address=3)
    held = Held(hub, 2)
    first = await cluster.pull(blob_path(held.blobs[0]), one)
    await held.reached(0)
    reading = await (await cluster.pull(blob_path(held.blobs[0]), other)).head()

    async def read_by():
        found = json.loads(await cluster.admin("/api/v1/downloads", one))["downloads"]
        assert all(entry["clients"] == ["127.0.0.1"] for entry in found if entry["readers"])
        return {entry["digest"]: entry["readers"] for entry in found}

    await eventually(read_by, "readers in both workers", holds=lambda seen: seen == {held.blobs[0].digest: 2})
    await first.close()
    waiting = await cluster.pull(blob_path(held.blobs[1]), one)
    one_each = {blob.digest: 1 for blob in held.blobs}
    await eventually(read_by, "one that is read in the other, and one that waits", holds=lambda seen: seen == one_each)
    await cluster.metrics(other)
    await finished(held, [reading, waiting])
    assert hub.count("GET", host="cdn", reference=held.blobs[0].digest) == 1


async def test_connections_of_an_address(hub, start):
    """Connections of one address count wherever they are."""
    cluster, (one, other) = await start(connections_per_address=2)
    held = Held(hub, 1)
    pulls = [await (await cluster.pull(blob_path(held.blobs[0]), worker)).head() for worker in (one, other)]
    for worker in (one, other):
        assert b"TOOMANYREQUESTS" in await (await cluster.pull("/v2/", worker)).rest()
    held.release()
    for pull in pulls:
        assert sha256(await pull.rest()) == held.blobs[0].digest
    assert await (await cluster.pull("/v2/", one)).rest() == b"{}"


async def test_connections_of_all(hub, start):
    """Connections of all addresses count wherever they are."""
    cluster, (one, other) = await start(connections=2)
    held = Held(hub, 1)
    # The admin address has connections of its own.
    pulls = [await (await cluster.pull(blob_path(held.blobs[0]), one)).head() for _ in range(2)]
    assert b"overloaded" in await (await cluster.pull("/v2/", other)).rest()
    held.release()
    for pull in pulls:
        await pull.rest()


async def test_requests_of_an_address(hub, start):
    """Requests of one address count wherever they are answered."""
    cluster, (one, other) = await start(requests_per_address=1)
    held = Held(hub, 1)
    pull = await (await cluster.pull(blob_path(held.blobs[0]), one)).head()
    assert b"TOOMANYREQUESTS" in await (await cluster.pull("/v2/", other)).rest()
    held.release()
    assert sha256(await pull.rest()) == held.blobs[0].digest
    assert await (await cluster.pull("/v2/", other)).rest() == b"{}"


async def test_downloads_of_an_address(hub, start):
    """What one address has begun counts wherever it was begun."""
    cluster, (one, other) = await start(downloads_per_address=1)
    held = Held(hub, 2)
    first = await cluster.pull(blob_path(held.blobs[0]), one)
    await held.reached(0)
    second = await cluster.pull(blob_path(held.blobs[1]), other)
    assert await (await cluster.pull("/v2/", other)).rest() == b"{}"
    assert held.asked() == 1
    held.gates[0].release()
    await held.reached(1)
    await finished(held, [first, second])
