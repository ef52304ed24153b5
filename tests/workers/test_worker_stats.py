"""What several processes have counted, as one."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mirror.admin.worker_stats import WorkerStats, fold_ended
from mirror.metrics import Metrics

OTHER = """
import sys
from pathlib import Path
from mirror.metrics import Metrics
from mirror.admin.worker_stats import WorkerStats
metrics = Metrics()
metrics.downloads.labels("failed").inc(5)
metrics.requests.series("docker.io", "blob", "HIT", 200).durations.add(0.2)
metrics.pull_limit("docker.io", 100, 1, 3600)
metrics.upstream_asked("docker.io", "hub", up=False)
metrics.sync_last_success.set(50)
metrics.download_readers.set(3)
WorkerStats(metrics, Path(sys.argv[1])).publish([{"digest": "x"}], {"credentials": {"ghcr.io": "theirs", "docker.io": "theirs"}})
print("there", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that has put up its sheet, and lives."""
    process = subprocess.Popen([sys.executable, "-c", OTHER, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"there\n"
    yield process
    process.communicate()


@pytest.fixture
def metrics():
    metrics = Metrics()
    metrics.downloads.labels("failed").inc(2)
    metrics.requests.series("docker.io", "blob", "HIT", 200).durations.add(0.3)
    metrics.pull_limit("docker.io", 100, 7, 3600)
    metrics.upstream_asked("docker.io", "hub", up=True)
    metrics.sync_last_success.set(40)
    metrics.storage_blobs.set(3)
    metrics.download_readers.set(4)
    return metrics


def samples(text):
    """Every sample by its name with labels; each may be there once, under a family that is described once."""
    lines = text.decode().splitlines()
    for family in (line for line in lines if line.startswith("# TYPE")):
        assert lines.count(family) == 1, family
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name.removeprefix("registry_mirror_"), *sample.labels.values())
            assert key not in found
            found[key] = sample.value
    return found


def test_sum(tmp_path, metrics, other):
    """Counters and histograms add up, and so do gauges of which each process has a part; of others one process's value counts."""
    board = WorkerStats(metrics, tmp_path)
    board.publish([{"digest": "y"}], {})
    found = samples(board.metrics())
    assert found["downloads_total", "failed"] == 7
    assert found["request_duration_seconds_count", "blob", "HIT"] == 2
    assert found["request_duration_seconds_bucket", "blob", "0.25", "HIT"] == 1
    assert found["download_readers",] == 7
    assert found["upstream_up", "docker.io", "hub"] == 0
    assert found["sync_last_success_timestamp_seconds",] == 50
    assert found["storage_blobs",] == 3
    assert board.downloads([{"digest": "now"}]) == [{"digest": "now"}, {"digest": "x"}]


@pytest.mark.parametrize(("later", "left"), [(-60, 1), (60, 7)])
def test_latest_word_of_a_pull_limit(tmp_path, metrics, other, later, left):
    """What is left of a pull limit is what upstream has said last, to whichever process, be it more or less than before."""
    metrics.heard["docker.io"] += later
    board = WorkerStats(metrics, tmp_path)
    board.publish([], {})
    assert samples(board.metrics())["upstream_ratelimit_remaining", "docker.io"] == left


def test_every_gauge_says_what_it_comes_to(metrics):
    """No gauge is without a word on what the values of several processes come to."""
    gauges = {family.name for family in metrics.registry.collect() if family.type == "gauge"}
    assert gauges == set(metrics.across)


def test_problems(tmp_path, metrics, other):
    """What one process has met all can tell, as long as it lives; the own words come first."""
    board = WorkerStats(metrics, tmp_path)
    board.publish([], {"credentials": {"quay.io": "of long ago"}})
    own = {"credentials": {"docker.io": "own"}, "files": {}}
    assert board.problems(own) == {"credentials": {"ghcr.io": "theirs", "docker.io": "own"}, "files": {}}
    other.communicate()
    assert board.problems(own) == own


def test_same_families_as_of_one_process(tmp_path, metrics, other):
    """Several processes have the families and the samples that one has."""
    board = WorkerStats(metrics, tmp_path)
    board.publish([], {})
    alone = samples(WorkerStats(metrics, None).metrics())
    together = samples(board.metrics())
    assert set(together) == set(alone)


def test_dead_process(tmp_path, metrics, other):
    """What a dead process has counted has happened; what it had under way is no more."""
    other.communicate()
    board = WorkerStats(metrics, tmp_path)
    board.publish([], {})
    found = samples(board.metrics())
    assert found["downloads_total", "failed"] == 7
    assert found["download_readers",] == 4
    assert found["upstream_ratelimit_remaining", "docker.io"] == 7
    assert board.downloads([]) == []


def test_many_dead_processes(tmp_path, metrics):
    """However many processes have ended, what they counted takes a few files, and the sum never changes while they are folded."""
    board = WorkerStats(metrics, tmp_path)
    for ended in range(1, 7):
        subprocess.run([sys.executable, "-c", OTHER, tmp_path], input=b"", check=True, capture_output=True)
        board.publish([], {})
        before = samples(board.metrics())
        fold_ended(tmp_path)
        after = samples(board.metrics())
        assert after == pytest.approx(before)
        # Prometheus takes any decrease for a restart, and counts everything again.
        assert all(after[name] >= before[name] for name in before)
        assert before["downloads_total", "failed"] == 2 + 5 * ended
        assert before["request_duration_seconds_count", "blob", "HIT"] == 1 + ended
        assert before["download_readers",] == 4
    assert len(list(tmp_path.iterdir())) <= 3


def test_sheets_that_are_folded_while_they_are_read(tmp_path, metrics, monkeypatch):
    """A process that has read the sum before a fold and the sheets after it counts everything once."""
    board = WorkerStats(metrics, tmp_path)
    subprocess.run([sys.executable, "-c", OTHER, tmp_path], input=b"", check=True, capture_output=True)
    board.publish([], {})
    glob = Path.glob

    def folded(self, pattern):
        monkeypatch.setattr(Path, "glob", glob)
        fold_ended(tmp_path)
        return glob(self, pattern)

    monkeypatch.setattr(Path, "glob", folded)
    assert samples(board.metrics())["downloads_total", "failed"] == 7


def test_what_was_told_survives(tmp_path, metrics):
    """What /metrics has told of a process can be told by another one when it is dead: counting on meanwhile changes nothing."""
    board = WorkerStats(metrics, tmp_path)
    board.publish([], {})
    metrics.downloads.labels("failed").inc(100)
    told = samples(board.metrics())["downloads_total", "failed"]
    assert samples(WorkerStats(Metrics(), tmp_path).metrics())["downloads_total", "failed"] == told


def test_threads(tmp_path, metrics):
    """A sheet that several threads write at once is never seen in pieces."""
    board, reader = WorkerStats(metrics, tmp_path), WorkerStats(Metrics(), tmp_path)
    board.publish([], {})
    end = threading.Event()

    def write():
        while not end.is_set():
            board.publish([], {})

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(30):
            assert samples(reader.metrics())["downloads_total", "failed"] == 2
    finally:
        end.set()
        for thread in threads:
            thread.join()
