"""A mirror that is purged, killed, reloaded and cut off from upstream for minutes gives nothing wrong, and leaks nothing.

SOAK_SECONDS and SOAK_SEED choose how long (five minutes) and which run.
"""

import os

import pytest

from tests.soak.disturbed import Plan, Soak, opened
from tests.support.processes import Process
from tests.support.waiting import eventually
from tests.workers.cluster import Cluster
from tests.workers.kills import is_counted

SECONDS = float(os.environ.get("SOAK_SECONDS", "300"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
# What no log of a mirror may hold, whatever is done to it.
BUGS = ("Traceback", "download_bug", "vanished from the store", "threw away", "Session is closed")


class RealCluster(Cluster):
    """A cluster with the time limits that operators have."""

    unhurried = False


def plan():
    """Purges and kills as often as in five minutes."""
    share = SECONDS / 300
    return Plan(SECONDS, SEED, purges=max(1, round(25 * share)), kills=max(1, round(20 * share)))


@pytest.mark.timeout(SECONDS + 300)
async def test_disturbed_for_minutes(hub, disk_path, capsys):
    """No wrong body, no short body but by a kill, no descriptor or room leaked, and the store is in order afterwards."""
    hub.connection_bandwidth = 8e6
    async with RealCluster(hub, disk_path) as cluster:
        soak = Soak(hub, cluster, plan())
        await soak.run()
        with capsys.disabled():
            told = soak.account
            print(f"\n{told.given} kills={len(told.kills)} purges={told.purges} reloads={told.reloads} cuts={told.cuts}")
        assert soak.account.wrong == []
        await eventually(lambda: len(cluster.workers()) == 2, "both workers")
        hub.connection_bandwidth = None
        assert await soak.all_right() == []
        await eventually(lambda: opened(cluster.workers(), cluster.store), "descriptors given back", holds=lambda left: not left)
        cluster.signal()
        assert await cluster.ended() == 0
        assert [bug for bug in BUGS if bug in cluster.log] == []
    # What kills have left goes, and the account is put right, when a mirror starts.
    async with RealCluster(hub, disk_path, storage={"path": str(cluster.store)}) as cluster:
        await cluster.logged('"leftovers_cleared"')
        await eventually(lambda: is_counted(cluster), "the account")
        assert [path for path in cluster.files("partial") if path.suffix != ".map"] == []
        cluster.signal()
        assert await cluster.ended() == 0
        async with Process("verify", "--config", str(cluster.file), directory=cluster.file.parent) as process:
            assert await process.ended() == 0, process.log
