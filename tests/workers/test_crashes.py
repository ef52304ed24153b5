"""SIGKILL of a worker and of the whole mirror in the middle of pulls: nothing wrong is served, and nothing is left behind."""

import asyncio
import contextlib
import os
import random
import signal

import pytest

from tests.fakehub import Rule
from tests.support.names import APP
from tests.support.waiting import LIMIT, eventually
from tests.workers.cluster import Cluster, driver
from tests.workers.kills import check_store, fetched, is_counted, kill_all, paths

# Loops of kills take long: `make e2e-full` runs them.
pytestmark = pytest.mark.full

ROUNDS = 5


class Rounds:
    """Rounds of concurrent pulls of an image that is new in each, with a kill at a moment that is drawn from a seed.

    The moment is a place in one of its layers: upstream holds the body there until the kill has happened.
    """

    def __init__(self, hub, seed):
        self.hub = hub
        self.random = random.Random(seed)
        self.images = []

    def image(self):
        """Some layers of all sizes: smaller than what is held back, of less and more than a chunk, and at its edges."""
        chunk = 1 << 20
        sizes = [self.random.randint(1, 60_000), chunk, self.random.randint(70_000, 4 * chunk), 2 * chunk + 1]
        number = len(self.images)
        layers = [self.hub.add_synthetic_blob(APP, size, number * 10 + i) for i, size in enumerate(sizes)]
        image = self.hub.add_image(APP, f"{number}", layers=layers)
        self.images.append(image)
        return image

    async def disturbed(self, cluster, kill):
        """Pull an image by several clients at once, `kill` in the middle, and check whatever body came whole."""
        image = self.image()
        layer = self.random.choice(image.layers)
        self.hub.clear_script()
        gate = self.hub.gate(Rule(kind="blob", host="cdn", reference=layer.digest), after=self.random.randint(0, layer.size))
        pulls = [asyncio.create_task(fetched(cluster, path)) for path in paths(image) * 3]
        async with asyncio.timeout(LIMIT):
            await gate.reached.wait()
        # Some of the others have got through by then, others not.
        await asyncio.wait(pulls, timeout=5, return_when=asyncio.FIRST_COMPLETED)
        kill(cluster, layer.digest)
        gate.release()
        for path, whole, digest in await asyncio.gather(*pulls):
            assert not whole or digest == path.rpartition("/")[2] or digest == image.digest, path

    async def all_right(self, cluster):
        """Every image can be pulled, with the right bytes; what of it was cut is picked up, whatever else happens."""
        for image in self.images:
            for path, whole, digest in await asyncio.gather(*(fetched(cluster, path) for path in paths(image))):
                assert whole, path
                assert digest == path.rpartition("/")[2] or digest == image.digest, path


def kill_worker(choose):
    def kill(cluster, digest):
        pids = cluster.workers()
        with contextlib.suppress(FileNotFoundError):
            pids = [pid for pid in (driver(cluster.store, digest, pids),) if pid] or pids
        os.kill(choose(pids), signal.SIGKILL)

    return kill


@pytest.mark.parametrize("seed", [1, 2])
async def test_killed_workers(hub, tmp_path, seed):
    """A worker killed at five moments of pulls, mostly the one that downloads what is just then held up."""
    rounds = Rounds(hub, seed)
    async with Cluster(hub, tmp_path) as cluster:
        for number in range(ROUNDS):
            await rounds.disturbed(cluster, kill_worker(rounds.random.choice))
            await cluster.logged('"worker_died"', number + 1)
            await rounds.all_right(cluster)
            # A short life makes for a pause before the next, which is proved elsewhere.
            await cluster.logged('"serving"', 3 + number) if number < 2 else None
        await eventually(lambda: cluster.log.count('"serving"') == 2 + ROUNDS, "the last worker")
    # The count at the start of a mirror puts the account right.
    async with Cluster(hub, tmp_path, storage={"path": str(cluster.store)}) as cluster:
        await rounds.all_right(cluster)
        await eventually(lambda: is_counted(cluster), "the count")
        await check_store(cluster)


@pytest.mark.parametrize("workers", [1, 2])
async def test_killed_mirror(hub, tmp_path, workers):
    """The whole mirror killed at five moments of pulls, and started again each time."""
    rounds = Rounds(hub, 10 + workers)
    for _ in range(ROUNDS):
        async with Cluster(hub, tmp_path, workers=workers) as cluster:
            await rounds.all_right(cluster)
            await rounds.disturbed(cluster, kill_all)
    async with Cluster(hub, tmp_path, workers=workers) as cluster:
        await rounds.all_right(cluster)
        await eventually(lambda: is_counted(cluster), "the count")
        await check_store(cluster)
