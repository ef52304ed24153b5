"""Kills of workers and of whole mirrors, and looks at what they leave."""

import asyncio
import os
import signal
import time

from mirror.maintenance.leftovers import Leftovers
from mirror.storage.account import on_disk
from mirror.storage.blobs import BlobFiles
from mirror.storage.index import Index
from mirror.storage.layout import Layout
from mirror.storage.space_quota import SpaceQuota
from tests.support.names import APP, sha256
from tests.support.processes import Process
from tests.workers.cluster import Pull


def paths(image):
    blobs = [f"/v2/{APP}/blobs/{blob.digest}" for blob in (image.config, *image.layers)]
    return [f"/v2/{APP}/manifests/{image.tag}", *blobs]


async def fetched(cluster, path):
    """The path, whether the body came whole, and its digest."""
    pull = Pull(cluster.port)
    try:
        body = await (await pull.begin(path)).rest()
        return path, pull.status == 200 and len(body) == pull.length, sha256(body)
    except (OSError, asyncio.IncompleteReadError):
        return path, False, None
    finally:
        await pull.close()


def kill_all(cluster, digest):
    # The workers before anything else can be told of their supervisor's end.
    for pid in (*cluster.workers(), cluster.process.pid):
        os.kill(pid, signal.SIGKILL)


async def check_store(cluster):
    """Nothing but what is held lies in the store, the account is right, and `verify` finds nothing wrong.

    What a kill leaves of a blob that another worker had just committed goes when a mirror starts.
    """
    await cluster.logged('"leftovers_cleared"')
    cluster.signal()
    assert await cluster.ended() == 0
    assert "Traceback" not in cluster.log
    # A map may outlive its blob by an hour, if the commit was cut in two.
    assert [path for path in cluster.files("partial") if path.suffix != ".map"] == []
    layout = Layout(str(cluster.store))
    room = SpaceQuota(layout, 0, 0)
    files, index = BlobFiles(layout, room), Index(layout.index)
    # Two days later.
    Leftovers(layout, files, index, lambda: time.time() + 2 * 86400).clear()
    index.close()
    assert cluster.files("tmp") == cluster.files("partial") == []
    held = list(files.walk())
    account = room.mark()
    assert (account.used, account.blobs) == (sum(on_disk(file.size) for file in held), len(held))
    async with Process("verify", "--config", str(cluster.file), directory=cluster.file.parent) as process:
        assert await process.ended() == 0, process.log


def is_counted(cluster):
    layout = Layout(str(cluster.store))
    room = SpaceQuota(layout, 0, 0)
    held, account = list(BlobFiles(layout, room).walk()), room.mark()
    return (account.used, account.blobs) == (sum(on_disk(file.size) for file in held), len(held))
