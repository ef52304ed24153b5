"""What hardly ever happens: a crash in the middle of a commit, two mirrors on one store, a thousand clients."""

import asyncio
import os
import resource
import sys

from tests.fakehub import Rule
from tests.support.names import APP, sha256
from tests.support.processes import Process
from tests.support.waiting import LIMIT, eventually
from tests.workers.cluster import Cluster, Pull
from tests.workers.kills import check_store

DIES_IN_COMMIT = """
import os, signal, sys
from mirror.download.partial import Partial
Partial.remove_map = lambda self: os.kill(os.getpid(), signal.SIGKILL)
sys.argv = ["mirror", "serve", "--config", sys.argv[1]]
from mirror.cli import main
main()
"""


async def body(port, path):
    pull = Pull(port)
    try:
        return await (await pull.begin(path)).rest()
    except (OSError, asyncio.IncompleteReadError):
        return b""
    finally:
        await pull.close()


class Dying(Process):
    """A mirror that is killed between the rename of a blob and the removal of its map."""

    async def __aenter__(self):
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", DIES_IN_COMMIT, *self._arguments,
            cwd=self._directory, env={**os.environ, "PYTHONPATH": os.getcwd()}, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        self._reading = asyncio.create_task(self._read())
        return self


async def test_killed_in_the_middle_of_a_commit(hub, tmp_path):
    """A mirror killed right after a blob got its name: the blob is held, whole, and nothing is left of its making."""
    blob = hub.add_synthetic_blob(APP, 3_000_000)
    cluster = Cluster(hub, tmp_path, workers=1)
    async with Dying(str(cluster.file), directory=tmp_path) as dying:
        await dying.logged('"serving"')
        await body(cluster.port, f"/v2/{APP}/blobs/{blob.digest}")
        assert await dying.ended() == -9
    assert [path.suffix for path in cluster.files("partial")] == [".map"]
    async with Cluster(hub, tmp_path, workers=1) as cluster:
        assert sha256(await body(cluster.port, f"/v2/{APP}/blobs/{blob.digest}")) == blob.digest
        assert hub.count(method="GET", kind="blob", host="cdn") == 1
        await check_store(cluster)


async def test_two_mirrors_on_one_store(hub, tmp_path):
    """Two mirrors that know nothing of each other share one store's downloads; when one ends, the other one's readers finish."""
    blob = hub.add_synthetic_blob(APP, 20_000_000)
    gate = hub.gate(Rule(kind="blob", host="cdn"), after=8_000_000)
    path = f"/v2/{APP}/blobs/{blob.digest}"
    (tmp_path / "two").mkdir()
    async with Cluster(hub, tmp_path) as one, Cluster(hub, tmp_path / "two", storage={"path": str(one.store)}) as two:
        pulls = [await mirror.pull(path) for mirror in (one, two, one, two)]
        async with asyncio.timeout(LIMIT):
            await gate.reached.wait()
        for pull in pulls:
            await (await pull.head()).read(1_000_000)
        assert hub.count(method="GET", kind="blob", host="cdn") == 1
        gate.release()
        assert {sha256(await pull.rest()) for pull in pulls} == {blob.digest}
        assert hub.count(method="GET", kind="blob", host="cdn") == 1
        one.signal()
        assert await one.ended() == 0
        assert sha256(await body(two.port, path)) == blob.digest


async def test_thousand_clients(cluster, hub):
    """A thousand clients of one cold blob: one download, and every body is right."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8192)), hard))
    blob = hub.add_synthetic_blob(APP, 300_000)
    gate = hub.gate(Rule(kind="blob", host="cdn"), after=100_000)
    pulls = [asyncio.create_task(body(cluster.port, f"/v2/{APP}/blobs/{blob.digest}")) for _ in range(1000)]
    async with asyncio.timeout(LIMIT):
        await gate.reached.wait()

    async def all_there():
        return (await cluster.metrics())["registry_mirror_download_readers"] == 1000

    await eventually(all_there, "a thousand readers")
    gate.release()
    assert {sha256(got) for got in await asyncio.gather(*pulls)} == {blob.digest}
    assert hub.count(method="GET", kind="blob", host="cdn") == 1
