"""Signals and the supervisor: what reaches all workers, what replaces them, and what is told to systemd."""

import asyncio
import os
import signal
import socket

import pytest

from tests.fakehub import Rule
from tests.support.names import APP, TAG, sha256
from tests.support.ports import free_port
from tests.support.processes import Process
from tests.support.waiting import LIMIT, eventually
from tests.workers.cluster import Cluster, children, state


def told(sock):
    """The first word of each message since the last time."""
    found = []
    while True:
        try:
            found.append(sock.recv(4096).decode().splitlines()[0])
        except BlockingIOError:
            return found


async def outcome(cluster, worker):
    pull = await cluster.pull(TAG, worker)
    await pull.rest()
    return pull.headers["x-cache"]


async def test_reload_reaches_all(hub, tmp_path, manager):
    """SIGHUP changes the ttl in every worker and in every later one; systemd is told once, whatever the number of workers."""
    hub.add_image(APP, "1")
    async with Cluster(hub, tmp_path, tags={"ttl": "1h"}) as cluster:
        await eventually(lambda: "READY=1" in told(manager), "the word to the service manager")
        assert told(manager) == []
        for pid in cluster.workers():
            await outcome(cluster, pid)
            assert await outcome(cluster, pid) == "HIT"
        cluster.write(tags={"ttl": "0s"})
        cluster.signal(signal.SIGHUP)
        await cluster.logged('"configuration_reloaded"', 2)
        assert told(manager) == ["RELOADING=1", "READY=1"]
        for pid in cluster.workers():
            assert await outcome(cluster, pid) == "REVALIDATED"
        killed = cluster.workers()[0]
        os.kill(killed, signal.SIGKILL)
        await cluster.logged('"serving"', 3)
        for pid in cluster.workers():
            assert await outcome(cluster, pid) == "REVALIDATED"
        cluster.write(tags={"ttl": "soon"})
        cluster.signal(signal.SIGHUP)
        await cluster.logged('"configuration_refused"')
        # A wrong file on disk is no hindrance for a worker that replaces another one.
        os.kill(cluster.workers()[0], signal.SIGKILL)
        await cluster.logged('"serving"', 4)
        for pid in cluster.workers():
            assert await outcome(cluster, pid) == "REVALIDATED"
        told(manager)
        cluster.signal()
        assert await cluster.ended() == 0
    assert told(manager) == ["STOPPING=1"]
    assert "Traceback" not in cluster.log


async def test_ready_when_all_serve(hub, tmp_path, manager):
    """READY is told after the last worker has begun to serve, and a stop while they start is told without it."""
    cluster = Cluster(hub, tmp_path)
    async with Process("serve", "--config", str(cluster.file), directory=tmp_path) as process:
        await eventually(lambda: "READY=1" in told(manager), "the word to the service manager")
        assert process.log.count('"serving"') <= 2
        await process.logged('"serving"', 2)
        process.signal()
        assert await process.ended() == 0
    assert told(manager) == ["STOPPING=1"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_end_drains_all(cluster, hub, number):
    """SIGTERM, or SIGINT to the whole group as a terminal sends it: bodies under way in each worker arrive whole; status 0."""
    blob = hub.add_synthetic_blob(APP, 20_000_000)
    gate = hub.gate(Rule(kind="blob", host="cdn"), after=5_000_000)
    pids = cluster.workers()
    pulls = [await cluster.pull(f"/v2/{APP}/blobs/{blob.digest}", pid) for pid in pids]
    for pull in pulls:
        await (await pull.head()).read(1000)
    for pid in (cluster.process.pid, *(pids if number == signal.SIGINT else ())):
        os.kill(pid, number)
    await cluster.logged('"draining"', 2)
    gate.release()
    assert [sha256(await pull.rest()) for pull in pulls] == [blob.digest] * 2
    assert await cluster.ended() == 0
    assert [state(pid) for pid in pids] == [None, None]
    assert "drain_ended" not in cluster.log
    assert "Traceback" not in cluster.log


async def test_second_sigterm_ends_the_drain(cluster, hub):
    """A second SIGTERM reaches the workers too: they do not wait for clients any more."""
    blob = hub.add_synthetic_blob(APP, 20_000_000)
    hub.gate(Rule(kind="blob", host="cdn"), after=5_000_000)
    pull = await cluster.pull(f"/v2/{APP}/blobs/{blob.digest}")
    await (await pull.head()).read(1000)
    cluster.signal()
    await cluster.logged('"draining"', 2)
    cluster.signal()
    async with asyncio.timeout(LIMIT):
        assert await cluster.ended() == 0
    assert "drain_ended" in cluster.log
    assert len(await pull.rest()) < blob.size


async def test_reload_in_the_first_moment_of_a_worker(cluster):
    """A storm of SIGHUPs while a worker starts does not kill it."""
    os.kill(cluster.workers()[0], signal.SIGKILL)
    await eventually(lambda: len(cluster.workers()) == 1 or "worker_died" in cluster.log, "the death")
    while cluster.log.count('"serving"') < 3:
        cluster.signal(signal.SIGHUP)
        await asyncio.sleep(0.002)
    assert cluster.log.count('"worker_died"') == 1


async def test_pauses_grow(hub, tmp_path):
    """A worker that dies at once again and again is restarted with growing pauses, while the other one serves."""
    hub.add_image(APP, "1")
    async with Cluster(hub, tmp_path) as cluster:
        stays = cluster.workers()[0]
        for death in range(1, 5):
            fresh = await eventually(lambda: [pid for pid in cluster.workers() if pid != stays], "another worker")
            os.kill(fresh[0], signal.SIGKILL)
            await cluster.logged('"worker_died"', death)
            assert (await cluster.get(TAG))[0] == 200
        pauses = [event["next_in_seconds"] for event in cluster.events() if event["event"] == "worker_died"]
        assert pauses == [0, 1, 2, 4]
        cluster.signal()
        assert await cluster.ended() == 0


async def test_supervisor_killed(cluster):
    """Workers whose supervisor was killed end by themselves, and their ports become free."""
    pids = cluster.workers()
    cluster.process.kill()
    await eventually(lambda: [state(pid) for pid in pids] in ([None, None], ["Z", "Z"]), "the workers' end")
    for port in (cluster.port, cluster.admin_port):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(("127.0.0.1", port))
            sock.listen()


@pytest.mark.parametrize("problem", ["listen", "tags.ttl", "storage.path"])
async def test_refused(hub, tmp_path, problem):
    """A port in use, a wrong configuration and an unusable store end the start with status 2 and their key."""
    cluster = Cluster(hub, tmp_path)
    changes = {
        "listen": {"listen": f"127.0.0.1:{hub.url.rpartition(':')[2]}"},
        "tags.ttl": {"tags": {"ttl": "soon"}},
        "storage.path": {"storage": {"path": "/proc/store"}},
    }
    cluster.write(**changes[problem])
    async with Process("serve", "--config", str(cluster.file), directory=tmp_path) as process:
        assert await process.ended() == 2
    assert process.log.splitlines()[-1].removeprefix("registry-mirror: ").startswith(f"{problem}: "), process.log


async def test_one_worker_per_core(hub, tmp_path, monkeypatch):
    """With `workers: 0` there are as many as cores."""
    cores = os.cpu_count()
    cluster = Cluster(hub, tmp_path, workers=0)
    async with Process("serve", "--config", str(cluster.file), directory=tmp_path) as process:
        await process.logged('"serving"', cores)
        assert len(children(process.process.pid)) == (cores if cores > 1 else 0)
        process.signal()
        assert await process.ended() == 0


async def test_port_free_again(hub, tmp_path):
    """Right after the end of all workers the mirror can be started again on the same ports."""
    port = free_port()
    for _ in range(2):
        async with Cluster(hub, tmp_path, listen=f"127.0.0.1:{port}") as cluster:
            cluster.signal()
            assert await cluster.ended() == 0
