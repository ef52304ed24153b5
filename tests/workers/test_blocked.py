"""A process whose event loop is blocked: it is replaced, and says where it hung; systemd hears of one that is not."""

import os
import signal
import subprocess
import sys

import pytest

from tests.support.processes import Served
from tests.support.waiting import LIMIT, eventually
from tests.workers.cluster import Cluster, state

SCRIPT = """
import asyncio, faulthandler, os, signal, time
from mirror.config.model import Config
from mirror.service import logs, supervisor, watchdog

logs.configure(Config().log)
faulthandler.enable()
watchdog.WORKER_LIMIT_S = 0.5

async def serve(worker):
    beating = asyncio.create_task(watchdog.keep_beating(worker.beat, 0.05))
    await asyncio.sleep(0.1)
    worker.ready()
    os.write(1, b"worker %d\\n" % os.getpid())
    if worker.slot == 0 and not os.path.exists("blocked"):
        open("blocked", "x").close()
        hangs()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, supervisor.HANDLED_SIGNALS)
    await stop.wait()
    beating.cancel()

def hangs():
    while True:
        time.sleep(1)

supervisor.Supervisor(2, lambda worker: asyncio.run(serve(worker)), Config(), Config).run()
"""


def test_blocked_worker_is_replaced(tmp_path):
    """By another one; the log has the function in which it hung."""
    argv = [sys.executable, "-c", SCRIPT]
    environment = {**os.environ, "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment, start_new_session=True
    ) as process:
        try:
            started = [int(process.stdout.readline().split()[1]) for _ in range(3)]
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
    assert process.returncode == 0
    assert len(set(started)) == 3
    assert log.count("worker_blocked") == 1
    assert "in hangs" in log


@pytest.fixture
def watchdog(manager, monkeypatch):
    """The service manager's socket; it has a watchdog that expects a message every 0.2 s."""
    monkeypatch.setenv("WATCHDOG_USEC", "200000")
    return manager


def beats(sock):
    """How many messages of the watchdog have come since the last time."""
    found = 0
    while True:
        try:
            found += sock.recv(4096) == b"WATCHDOG=1"
        except BlockingIOError:
            return found


@pytest.mark.parametrize("kind", [Served, Cluster])
async def test_systemd_hears_of_it(hub, tmp_path, watchdog, kind):
    """With and without workers; a process that has been stopped says nothing, one that goes on does again."""
    async with kind(hub, tmp_path) as mirror:
        for _ in range(3):
            await eventually(lambda: beats(watchdog), "a message of the watchdog")
        mirror.signal(signal.SIGSTOP)
        await eventually(lambda: state(mirror.process.pid) == "T", "a stopped process")
        beats(watchdog)
        mirror.signal(signal.SIGCONT)
        await eventually(lambda: beats(watchdog), "a message of the watchdog")
