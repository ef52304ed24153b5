"""`downloads.max_rate` is the mirror's: all of its workers together receive no more from upstreams."""

import asyncio
import time

from mirror.core.byte_rate import BURST_S
from tests.support.mirrors import MirrorUnderTest
from tests.support.names import APP, KIB, MIB, blob_path, sha256
from tests.workers.cluster import Cluster

RATE = MIB
SIZE = 768 * KIB


async def test_of_all_workers(hub, tmp_path):
    """Two downloads in two workers take as long as both of them would in one."""
    blobs = [hub.add_synthetic_blob(APP, SIZE, seed) for seed in (1, 2)]
    downloads = {"max_rate": f"{RATE >> 10}KiB", "prefetch": False}
    async with Cluster(hub, tmp_path, downloads=downloads) as cluster:
        began = time.monotonic()
        pulls = [await cluster.pull(blob_path(blob), worker) for blob, worker in zip(blobs, cluster.workers(), strict=True)]
        bodies = await asyncio.gather(*(pull.rest() for pull in pulls))
        took = time.monotonic() - began
    assert {sha256(body) for body in bodies} == {blob.digest for blob in blobs}
    # Each worker may be ahead by a burst, and does not wait for what comes at the very end.
    assert took > 2 * SIZE / RATE - 2 * BURST_S - 4 * 64 * KIB / RATE


async def test_a_reload_changes_it(hub, tmp_path):
    """Without a limit from then on nothing waits, and with one everything does."""
    blobs = [hub.add_synthetic_blob(APP, SIZE, seed) for seed in (1, 2)]
    async with MirrorUnderTest(hub, tmp_path / "store", downloads={"max_rate": 0}) as mirror:
        assert (await mirror.get(blob_path(blobs[0]))).sha256 == blobs[0].digest
        await mirror.reload(downloads={"max_rate": "1MiB"})
        began = time.monotonic()
        assert (await mirror.get(blob_path(blobs[1]))).sha256 == blobs[1].digest
        assert time.monotonic() - began > SIZE / RATE - BURST_S - 2 * 64 * KIB / RATE
