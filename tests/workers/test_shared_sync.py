"""Two workers, one store: one of them keeps it in sync, any of them takes orders, and another takes over from one that dies."""

import asyncio
import contextlib
import json
import os
import signal

from mirror.core.digest import Digest
from mirror.core.freshness import TagRecord
from mirror.core.names import Repository, Tag
from mirror.storage.index import Index
from mirror.storage.job_store import JobStore
from mirror.storage.layout import Layout
from tests.fakehub import Rule
from tests.support.names import APP, sha256
from tests.support.waiting import LIMIT, eventually
from tests.workers.cluster import Cluster, Pull
from tests.workers.kills import fetched, kill_all, paths

CDN = Rule(kind="cdn", times=None)


async def ask(cluster, path, method="GET", **body):
    """An answer of whichever worker gets the connection."""
    pull = await Pull(cluster.admin_port).begin(path, None, method, **body)
    return json.loads(await pull.rest()), pull.status


async def ended(cluster, order):
    """What came of an order, asked for over new connections."""

    async def found():
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            answer, status = await ask(cluster, f"/api/v1/sync/{order}")
            assert status == 200, answer
            return answer if answer["result"] not in ("waiting", "running") else None

    return await eventually(found, "the end of the order")


async def warm(cluster, *images):
    answer, status = await ask(cluster, "/api/v1/warm", "POST", images=list(images))
    assert status == 202
    return answer["order"]


def keeper(cluster):
    """The worker that has the lock."""
    path = cluster.store / "sync.lock"
    if not path.exists():
        return None
    inode = path.stat().st_ino
    with open("/proc/locks") as locks:
        holders = [int(line.split()[4]) for line in locks if "FLOCK" in line and f":{inode} " in line and "->" not in line]
    assert len(holders) <= 1
    return next((pid for pid in holders if pid in cluster.workers()), None)


def known(store, hub, count):
    """Tags that were pulled before."""
    layout = Layout(str(store))
    layout.prepare()
    index = Index(layout.index)
    for number in range(count):
        image = hub.add_image(APP, f"{number}", layers=[b"%d" % number])
        record = TagRecord(Digest.parse(image.digest), image.media_type, len(image.raw), 1.0, 1.0, 4e9)
        index.tags.put(Repository.parse("docker.io", APP), Tag(f"{number}"), record)
    index.close()


def heads(hub):
    return sorted(int(seen.reference) for seen in hub.find("HEAD", "manifest", status=200))


async def test_one_run(hub, tmp_path):
    """Of two workers one makes the run: each tag is asked about once, and both tell the same of it."""
    known(tmp_path / "store", hub, 60)
    async with Cluster(hub, tmp_path, sync={"interval": "1h"}) as cluster:

        async def done(pid):
            return json.loads(await cluster.admin("/api/v1/sync", pid))["last"]["schedule"]

        pids = cluster.workers()
        told = [await eventually(lambda pid=pid: done(pid), "the run") for pid in pids]
        assert told[0] == told[1]
        assert told[0]["tags"] == {"unchanged": 60}
        assert heads(hub) == list(range(60))

        async def summed():
            metrics = [await cluster.metrics(pid) for pid in pids]
            return all(
                metric['registry_mirror_sync_tags_total{result="unchanged"}'] == 60
                and metric['registry_mirror_sync_runs_total{result="completed"}'] == 1
                and metric["registry_mirror_sync_last_success_timestamp_seconds"] == told[0]["ended"]
                for metric in metrics
            )

        await eventually(summed, "the metrics of both")


async def test_orders_to_any(hub, tmp_path):
    """Orders given to either worker are carried out, and told of by both while they run and afterwards."""
    async with Cluster(hub, tmp_path, sync={"interval": "0"}) as cluster:
        image = hub.add_image(APP, "1", layers=[b"x" * 100_000])
        gate = hub.gate(CDN, after=1000)
        first, second = cluster.workers()
        orders = [
            json.loads(await cluster.admin("/api/v1/warm", pid, "POST", images=["app:1"]))["order"] for pid in (first, second)
        ]

        async def running(pid):
            return json.loads(await cluster.admin(f"/api/v1/sync/{orders[0]}", pid))["result"] == "running"

        for pid in (first, second):
            await eventually(lambda pid=pid: running(pid), "told by each")
        gate.release()
        results = [await ended(cluster, order) for order in orders]
        assert [result["tags"] for result in results] == [{"moved": 1}, {"unchanged": 1}]
        hub.reset_counters()
        for pid in (first, second):
            pull = await cluster.pull(f"/v2/{APP}/blobs/{image.layers[0].digest}", pid)
            assert sha256(await pull.rest()) == image.layers[0].digest
        assert hub.count() == 0


async def test_killed_keeper(hub, tmp_path):
    """SIGKILL of the worker that carries an order out: another takes it over, and goes on with the bytes that are there."""
    async with Cluster(hub, tmp_path, sync={"interval": "0"}) as cluster:
        layer = hub.add_synthetic_blob(APP, 12_000_000)
        image = hub.add_image(APP, "1", layers=[layer])
        gate = hub.gate(Rule(kind="cdn", reference=layer.digest), after=8_000_000)
        order = await warm(cluster, "app:1")
        await asyncio.wait_for(gate.reached.wait(), LIMIT)
        os.kill(await eventually(lambda: keeper(cluster), "a keeper"), signal.SIGKILL)
        gate.release()
        done = await ended(cluster, order)
        assert (done["result"], done["tags"]) == ("completed", {"moved": 1})
        # Not again from the start. What had come into a buffer is lost.
        first, *others = hub.find("GET", host="cdn", reference=layer.digest)
        assert first.range is None
        assert others
        assert all(int(seen.range.removeprefix("bytes=").partition("-")[0]) > 0 for seen in others)
        hub.reset_counters()
        for path in paths(image)[1:]:
            _, whole, digest = await fetched(cluster, path)
            assert (whole, digest) == (True, path.rpartition("/")[2])
        # The first worker asks each upstream once when it starts, also again.
        assert hub.find("GET", repository=APP) == []


async def test_killed_mirror(hub, tmp_path):
    """SIGKILL of everything in the middle of a run: what is served afterwards is right, and the run goes on where it was."""
    known(tmp_path / "store", hub, 30)
    settings = {"sync": {"interval": "1h", "images": ["app:new"]}}
    layer = hub.add_synthetic_blob(APP, 3_000_000)
    image = hub.add_image(APP, "new", layers=[layer])
    gate = hub.gate(Rule(kind="cdn", reference=layer.digest), after=1_500_000)
    async with Cluster(hub, tmp_path, **settings) as cluster:
        await asyncio.wait_for(gate.reached.wait(), LIMIT)
        await eventually(lambda: hub.count("HEAD", "manifest", status=200) == 31, "all HEADs")

        async def noted():
            state, _ = await ask(cluster, "/api/v1/sync")
            return [run["tags"] for run in state["running"]] == [{"unchanged": 30}]

        await eventually(noted, "what came of them")
        kill_all(cluster, None)
    gate.release()
    hub.reset_counters()
    async with Cluster(hub, tmp_path, **settings) as cluster:
        # A client meanwhile.
        for path, whole, digest in await asyncio.gather(*(fetched(cluster, path) for path in paths(image))):
            assert whole
            assert digest == path.rpartition("/")[2] or digest == image.digest

        async def done():
            state, _ = await ask(cluster, "/api/v1/sync")
            return (state["last"]["schedule"] or {}).get("result") == "completed"

        await eventually(done, "the run")
        assert {seen.reference for seen in hub.find("HEAD", "manifest", status=200)} <= {"new", image.digest}
        assert "Traceback" not in cluster.log


async def test_cancelled_by_the_other(hub, tmp_path):
    """The worker that does not carry an order out cancels it; its fetch stops in the one that does."""
    async with Cluster(hub, tmp_path, sync={"interval": "0"}) as cluster:
        layer = hub.add_synthetic_blob(APP, 3_000_000)
        hub.add_image(APP, "1", layers=[layer])
        gate = hub.gate(Rule(kind="cdn", reference=layer.digest), after=1_000_000)
        order = await warm(cluster, "app:1")
        await asyncio.wait_for(gate.reached.wait(), LIMIT)
        other = next(pid for pid in cluster.workers() if pid != keeper(cluster))
        pull = await Pull(cluster.admin_port).begin(f"/api/v1/sync/{order}", cluster, "DELETE")
        done = json.loads(await pull.rest())
        assert (pull.status, done["result"]) == (200, "cancelled"), (done, other)
        await eventually(lambda: not gate.waiting, "the end of the fetch")


async def test_cancelled_and_killed(hub, tmp_path):
    """SIGKILL of everything after a cancellation was accepted: the order does not come back."""
    settings = {"sync": {"interval": "0"}}
    layer = hub.add_synthetic_blob(APP, 3_000_000)
    hub.add_image(APP, "1", layers=[layer])
    gate = hub.gate(Rule(kind="cdn", reference=layer.digest, times=None), after=1_000_000)
    async with Cluster(hub, tmp_path, **settings) as cluster:
        order = await warm(cluster, "app:1")
        await asyncio.wait_for(gate.reached.wait(), LIMIT)
        # The one that would carry it out does nothing any more.
        os.kill(await eventually(lambda: keeper(cluster), "a keeper"), signal.SIGSTOP)
        pull = await Pull(cluster.admin_port).begin(f"/api/v1/sync/{order}", None, "DELETE")
        jobs = JobStore(Layout(str(cluster.store)).index)
        await eventually(lambda: jobs.cancellations(), "the cancellation")
        jobs.close()
        kill_all(cluster, None)
        await pull.close()
    hub.reset_counters()
    async with Cluster(hub, tmp_path, **settings) as cluster:
        assert (await ended(cluster, order))["result"] == "cancelled"
        # At its start a mirror asks each upstream once, for another repository.
        assert hub.find(repository=APP) == []
