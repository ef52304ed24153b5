"""Whether an event loop turns: what counts as blocked, and what the service manager wants to hear."""

import os
import socket
from types import SimpleNamespace

import pytest

from mirror.service import watchdog
from mirror.service.watchdog import WORKER_LIMIT_S, Heartbeats, ServiceWatchdog


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is moved."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: clock.now))
    return clock


def test_blocked(clock):
    """A loop that has turned and does not turn for the limit; one that has not begun yet may take its time."""
    beats = Heartbeats(2)
    beats.beat(1)
    pass_time(clock, beats, WORKER_LIMIT_S)
    assert [beats.is_blocked(slot) for slot in (0, 1)] == [False, False]
    pass_time(clock, beats, 1)
    assert [beats.is_blocked(slot) for slot in (0, 1)] == [False, True]
    beats.beat(1)
    assert not beats.is_blocked(1)


def test_standstill(clock):
    """After a time in which nothing ran, not even the supervisor, a worker gets the whole limit to report."""
    beats = Heartbeats(1)
    pass_time(clock, beats, 2 * WORKER_LIMIT_S)
    beats.beat(0)
    clock.now += 10 * WORKER_LIMIT_S
    beats.look()
    assert not beats.is_blocked(0)
    pass_time(clock, beats, WORKER_LIMIT_S - 1)
    assert not beats.is_blocked(0)
    pass_time(clock, beats, 1)
    assert beats.is_blocked(0)


def pass_time(clock, beats, seconds):
    """Have the supervisor look each second."""
    for _ in range(int(seconds)):
        clock.now += 1.0
        beats.look()


def test_another_process_in_the_slot(clock):
    """The one before it says nothing of it."""
    beats = Heartbeats(1)
    beats.beat(0)
    pass_time(clock, beats, 2 * WORKER_LIMIT_S)
    assert beats.is_blocked(0)
    beats.clear(0)
    assert not beats.is_blocked(0)


def test_shared():
    """What a forked process notes is seen by the other."""
    beats = Heartbeats(1)
    if (pid := os.fork()) == 0:
        beats.beat(0)
        os._exit(0)
    os.waitpid(pid, 0)
    assert beats._times[0] > 0


@pytest.mark.parametrize(
    ("usec", "pid", "interval"),
    [("60000000", "own", 30.0), ("1000000", "", 0.5), ("60000000", "1", None), ("", "own", None), ("0", "own", None),
     ("-5", "own", None), ("x", "own", None), ("٣", "own", None)],
)  # fmt: skip
def test_wanted_by_the_service_manager(monkeypatch, usec, pid, interval):
    """Twice within its limit, if it means this process; the environment says no more of it to children."""
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert ServiceWatchdog().interval == interval
    assert not {"WATCHDOG_USEC", "WATCHDOG_PID"} & set(os.environ)


def test_messages(monkeypatch, tmp_path, clock):
    """As often as they are due, however often it is asked."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "20000000")
        service = ServiceWatchdog()
        service.beat()
        assert manager.recv(100) == b"WATCHDOG=1"
        clock.now += 9.9
        service.beat()
        with pytest.raises(BlockingIOError):
            manager.recv(100)
        clock.now += 0.1
        service.beat()
        assert manager.recv(100) == b"WATCHDOG=1"
