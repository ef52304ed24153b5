"""The counts of a mirror over time: by several processes, over restarts, and on a disk that fails."""

from types import SimpleNamespace

import pytest

from mirror.admin.traffic import TrafficHistory
from mirror.core.traffic import Traffic
from mirror.storage.traffic_file import TrafficFile

MINUTE = 60
STARTED = 1_800_000_000


@pytest.fixture
def clock(monkeypatch):
    """Seconds since the epoch, which a test moves on."""
    clock = SimpleNamespace(now=float(STARTED))
    monkeypatch.setattr("mirror.admin.traffic.time", SimpleNamespace(time=lambda: clock.now))
    return clock


class Process:
    """A process of a mirror, and the counts of all of its processes."""

    def __init__(self, path, counts, started=STARTED):
        self.counts = counts
        self.history = TrafficHistory(TrafficFile(str(path)), started * 10**9, self.figures)

    def figures(self):
        return {"pulls": self.counts[0], "hits": 0, "served_bytes": 0, "upstream_bytes": 0}

    def pulls(self):
        """The pulls of each minute since the start in which there were any."""
        grown = self.history.growth(self.figures())
        return [(minute - STARTED // 60, traffic.pulls) for minute, traffic in grown if traffic != Traffic()]


def test_processes_share_the_history(clock, tmp_path):
    """Each writes the counts of all; none counts twice, and each knows what the other has written."""
    counts = [0]
    one, other = Process(tmp_path / "traffic", counts), Process(tmp_path / "traffic", counts)
    for minute in range(1, 4):
        clock.now = STARTED + minute * MINUTE
        counts[0] += 10
        one.history.record()
        counts[0] += 1
        other.history.record()
    assert one.pulls() == other.pulls() == [(1, 11), (2, 11), (3, 11)]
    counts[0] += 5
    assert one.pulls() == [(1, 11), (2, 11), (3, 16)]


def test_a_restart_within_a_minute_loses_nothing(clock, tmp_path):
    """The last counts of the run before stay, and those of the new run come to them."""
    before = Process(tmp_path / "traffic", [7])
    clock.now = STARTED + MINUTE + 5
    before.history.record()
    after = Process(tmp_path / "traffic", [2], STARTED + MINUTE + 10)
    clock.now = STARTED + MINUTE + 20
    after.history.record()
    assert sum(pulls for _, pulls in after.pulls()) == 9
    clock.now += MINUTE
    after.history.record()
    assert sum(pulls for _, pulls in after.pulls()) == 9


def test_figures_of_now_are_in_it(clock, tmp_path):
    """What was counted since the last minute is shown at once, and a new minute adds to it."""
    process = Process(tmp_path / "traffic", [1])
    assert process.pulls() == [(0, 1)]
    clock.now += MINUTE
    process.history.record()
    process.counts[0] = 4
    assert process.pulls() == [(1, 4)]
    process.history.record()
    clock.now += MINUTE
    process.counts[0] = 6
    assert process.pulls() == [(1, 4), (2, 2)]


def test_a_disk_that_fails_leaves_a_gap(clock, tmp_path):
    """Nothing is raised; what was counted meanwhile is in the minute that could be written next."""
    process = Process(tmp_path / "missing" / "traffic", [1])
    clock.now += MINUTE
    process.history.record()
    assert process.pulls() == [(1, 1)]
    (tmp_path / "missing").mkdir()
    clock.now += MINUTE
    process.counts[0] = 3
    process.history.record()
    clock.now += MINUTE
    assert process.pulls() == [(2, 3)]
