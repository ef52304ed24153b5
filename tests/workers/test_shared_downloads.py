"""Two workers, one store: one download, readers in both, and a worker that dies in the middle."""

import asyncio
import contextlib
import json
import os
import signal

from tests.fakehub import Rule
from tests.support.names import APP, blob_path, sha256
from tests.support.waiting import LIMIT, eventually
from tests.workers.cluster import Cluster, driver

SIZE = 24_000_000
MIDDLE = 10_000_000
# What upstream had sent into a connection that was then lost: buffers on both sides.
LOST = 6_000_000
CDN = Rule(kind="blob", host="cdn")


async def started(cluster, hub, clients, size=SIZE):
    """A blob that upstream holds in the middle, and clients of it in both workers that have begun to read."""
    blob = hub.add_synthetic_blob(APP, size)
    gate = hub.gate(CDN, after=MIDDLE)
    pids = cluster.workers()
    pulls = [await cluster.pull(blob_path(blob), pids[i % len(pids)]) for i in range(clients)]
    async with asyncio.timeout(LIMIT):
        await gate.reached.wait()
    for pull in pulls:
        await (await pull.head()).read(1_000_000)
    return blob, gate, pulls


async def test_one_download_for_both_workers(cluster, hub):
    """16 clients of two workers and one cold blob: upstream is asked once, all bytes are right, one download is counted."""
    blob, gate, pulls = await started(cluster, hub, 16)
    assert {pull.worker for pull in pulls} == set(cluster.workers())
    # What the other worker says of itself may be a second old.
    metrics = await eventually(cluster.metrics, holds=lambda seen: seen["registry_mirror_download_readers"] >= 8)
    gate.release()
    bodies = await asyncio.gather(*(pull.rest() for pull in pulls))
    assert {sha256(body) for body in bodies} == {blob.digest}
    assert hub.count(method="GET", kind="blob", host="cdn") == 1
    assert sum(seen.body_bytes_sent for seen in hub.find(method="GET", host="cdn")) == SIZE
    assert sorted({pull.headers["x-cache"] for pull in pulls}) == ["JOINED", "MISS"]
    assert cluster.files("partial") == []

    async def settled():
        metrics = await cluster.metrics()
        served = metrics['registry_mirror_served_bytes_total{outcome="MISS",registry="docker.io"}']
        joined = metrics['registry_mirror_served_bytes_total{outcome="JOINED",registry="docker.io"}']
        return served + joined == 16 * SIZE and metrics

    metrics = await eventually(settled, "metrics of both workers")
    assert metrics['registry_mirror_downloads_total{result="committed"}'] == 1
    assert sum(value for name, value in metrics.items() if "requests_total" in name and 'kind="blob"' in name) >= 16


async def test_downloads_of_both_workers(cluster, hub):
    """/api/v1/downloads shows what each of the workers is at, whichever is asked."""
    blobs = [hub.add_synthetic_blob(APP, SIZE, seed) for seed in (1, 2)]
    gate = hub.gate(Rule(kind="blob", host="cdn", times=None), after=MIDDLE)
    first, second = cluster.workers()
    pulls = [await cluster.pull(blob_path(blob), pid) for blob, pid in zip(blobs, (first, second), strict=True)]
    for pull in pulls:
        await pull.head()
    for pid in (first, second):

        async def shown(pid=pid):
            found = json.loads(await cluster.admin("/api/v1/downloads", pid))["downloads"]
            return {entry["digest"] for entry in found} == {blob.digest for blob in blobs}

        await eventually(shown, "the downloads of both workers")
    gate.release()
    assert [sha256(await pull.rest()) for pull in pulls] == [blob.digest for blob in blobs]


async def test_killed_driver(cluster, hub):
    """SIGKILL of the worker that downloads: clients of the other finish, from the byte where it was; it is replaced."""
    blob, gate, pulls = await started(cluster, hub, 8)
    before = cluster.workers()
    killed = driver(cluster.store, blob.digest, before)
    told = await cluster.metrics(killed)
    os.kill(killed, signal.SIGKILL)
    await eventually(lambda: len(cluster.workers()) == 2 and killed not in cluster.workers(), "another worker")
    gate.release()
    mine = [pull for pull in pulls if pull.worker != killed]
    others = [pull for pull in pulls if pull.worker == killed]
    assert len(mine) == len(others) == 4
    bodies = await asyncio.gather(*(pull.rest() for pull in mine))
    assert {sha256(body) for body in bodies} == {blob.digest}
    for pull in others:
        assert len(await pull.rest()) < SIZE
    ranges = [seen.range for seen in hub.find(method="GET", kind="blob", host="cdn")]
    assert ranges[0] is None
    resumed = [int(text.removeprefix("bytes=").partition("-")[0]) for text in ranges[1:]]
    assert resumed
    assert min(resumed) >= 1_000_000
    assert hub.bytes_sent(blob.digest) <= SIZE + LOST
    await cluster.logged('"worker_died"')
    await cluster.logged('"serving"', 3)
    # The new one serves, and the store is in order.
    (new,) = set(cluster.workers()) - set(before)
    assert sha256(await (await cluster.pull(blob_path(blob), new)).rest()) == blob.digest
    assert cluster.files("partial") == []
    for pid in cluster.workers():
        assert_no_counter_fell(told, await cluster.metrics(pid))


def assert_no_counter_fell(before, after):
    for name, value in before.items():
        if "_total" in name or "_count" in name or "_bucket" in name:
            assert after[name] >= value, name


async def test_counters_never_fall(cluster, hub):
    """Counters read at any time, from any worker, only grow while workers are killed and replaced."""
    image = hub.add_image(APP, "1")
    tag = f"/v2/{APP}/manifests/1"
    last = {}
    for _ in range(3):
        for _ in range(5):
            assert (await (await cluster.pull(tag)).rest()) == image.raw
            for pid in cluster.workers():
                now = await cluster.metrics(pid)
                assert_no_counter_fell(last, now)
                last = now
        victim = cluster.workers()[0]
        os.kill(victim, signal.SIGKILL)
        await eventually(lambda victim=victim: victim not in cluster.workers() and len(cluster.workers()) == 2, "another")
    assert_no_counter_fell(last, await cluster.metrics())


async def test_purge_counts_in_every_worker(hub, tmp_path):
    """A purge through one worker makes the other, which has the image in its memory, ask upstream again at once."""
    async with Cluster(hub, tmp_path, tags={"ttl": "1h"}) as cluster:
        image = hub.add_image(APP, "1")
        tag = f"/v2/{APP}/manifests/1"
        first, second = cluster.workers()
        for pid in (first, second, first, second):
            pull = await cluster.pull(tag, pid)
            assert await pull.rest() == image.raw
        assert pull.headers["x-cache"] == "HIT"
        new = hub.add_image(APP, "1", layers=[b"new"])
        answer = json.loads(await cluster.admin("/api/v1/purge", first, "POST", match=f"docker.io/{APP}:*"))
        assert answer["tags"] == 1
        pull = await cluster.pull(tag, second)
        assert await pull.rest() == new.raw
        assert pull.headers["x-cache"] == "MISS"


async def test_one_janitor(cluster, hub):
    """One process of a store cleans up; when it dies, another one does."""
    pids = cluster.workers()
    first = await eventually(lambda: _janitor(cluster, pids), "a janitor")
    os.kill(first, signal.SIGKILL)

    def another():
        return _janitor(cluster, cluster.workers()) not in (None, first)

    await eventually(another, "another janitor")


def _janitor(cluster, pids):
    """The process that has the janitor's lock."""
    path = cluster.store / "janitor.lock"
    if not path.exists():
        return None
    status = path.stat()
    file = f" {os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino} "
    with open("/proc/locks") as locks:
        # A set: a list that changes while it is read may show a line twice.
        holders = {int(line.split()[4]) for line in locks if "FLOCK" in line and file in line and "->" not in line}
    assert len(holders) <= 1
    return next((pid for pid in holders if pid in pids), None)


async def asked_in_both(cluster, hub):
    """A manifest that upstream holds back from one worker, and a client of the other worker that asks for it meanwhile."""
    image = hub.add_image(APP, "1")
    gate = hub.gate(Rule(kind="manifest", method="GET"))
    one, other = cluster.workers()
    first = await cluster.pull(f"/v2/{APP}/manifests/{image.digest}", one)
    async with asyncio.timeout(LIMIT):
        await gate.reached.wait()
    second = await cluster.pull(f"/v2/{APP}/manifests/{image.digest}", other)
    await eventually(lambda: "manifests.lock" in open_files(other), "the other worker in line")
    return image, gate, first, second


def open_files(pid):
    """Names of the files that a process has open."""
    found = set()
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.path.basename(os.readlink(f"/proc/{pid}/fd/{name}")))
    return found


async def test_one_pull_of_a_manifest_for_both_workers(cluster, hub):
    """A manifest that clients of two workers ask for at the same time costs one pull."""
    image, gate, first, second = await asked_in_both(cluster, hub)
    gate.release()
    assert [await (await pull.head()).rest() for pull in (first, second)] == [image.raw, image.raw]
    assert [pull.headers["x-cache"] for pull in (first, second)] == ["MISS", "JOINED"]
    assert hub.count("GET", "manifest", status=200) == 1


async def test_killed_while_it_fetches_a_manifest(cluster, hub):
    """When the worker that fetches a manifest is killed, the other one fetches it at once."""
    image, _, first, second = await asked_in_both(cluster, hub)
    os.kill(first.worker, signal.SIGKILL)
    assert await (await second.head()).rest() == image.raw
    assert second.headers["x-cache"] == "MISS"
    assert hub.count("GET", "manifest", status=200) == 2
    await first.close()
