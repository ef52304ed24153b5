"""Several workers over an index whose files are damaged while they serve."""

import os
import random
import signal

import pytest

from tests.support.names import APP, TAG, blob_path
from tests.support.waiting import eventually


def overwrite(files, seed):
    """Put random bytes where each file's first page is."""
    data = random.Random(seed)
    for path in files:
        with open(path, "r+b") as file:
            file.write(data.randbytes(min(4096, path.stat().st_size)))


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm", "*"])
async def test_replaced_worker_on_damaged_files(hub, cluster, suffix):
    """A worker that is replaced while the index's files are damaged starts, and all workers go on serving and share one index."""
    image = hub.add_image(APP, "1", layers=[os.urandom(1000)])
    await (await cluster.pull(TAG)).rest()
    directories = {file.parent: file.parent.stat().st_ino for file in cluster.files("index")}
    overwrite([file for file in cluster.files("index") if file.match(f"cache.db{suffix}")], 1)
    first, second = cluster.workers()
    os.kill(second, signal.SIGKILL)
    await eventually(lambda: len(set(cluster.workers()) - {second}) == 2, "a new worker")
    (new,) = set(cluster.workers()) - {first}
    await cluster.logged('"serving"', 3)
    for worker in (first, new):
        for _ in range(2):
            assert await (await cluster.pull(TAG, worker)).rest() == image.raw
            assert await (await cluster.pull(blob_path(image.layers[0]), worker)).rest()
    assert {directory: directory.stat().st_ino for directory in directories} == directories
    assert cluster.workers() == [first, new]


async def test_start_on_damaged_files(hub, cluster):
    """A mirror that starts on an index of which every file is damaged serves, and relearns what it needs."""
    image = hub.add_image(APP, "1", layers=[os.urandom(1000)])
    await (await cluster.pull(TAG)).rest()
    for pid in cluster.workers():
        os.kill(pid, signal.SIGSTOP)
    overwrite(cluster.files("index"), 2)
    stopped = cluster.workers()
    for pid in stopped:
        os.kill(pid, signal.SIGKILL)
    await cluster.logged('"serving"', 4)
    for worker in cluster.workers():
        assert await (await cluster.pull(TAG, worker)).rest() == image.raw
