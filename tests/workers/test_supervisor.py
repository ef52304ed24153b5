"""The supervisor outlives what the machine refuses it."""

import contextlib
import os
import signal
import subprocess
import sys

from tests.support.waiting import LIMIT

SCRIPT = """
import os, signal, sys, time
from mirror.config.model import Config
from mirror.service import logs, supervisor

logs.configure(Config().log)
supervisor._FORK_PAUSE_S = 0.05
refused, fork, calls = set(map(int, sys.argv[1].split(","))), os.fork, 0

def sometimes():
    global calls
    calls += 1
    if calls in refused:
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return fork()

os.fork = sometimes

def work(worker):
    os.write(1, b"worker %d\\n" % os.getpid())
    worker.ready()
    signal.sigwait({signal.SIGTERM})

supervisor.Supervisor(2, work, Config(), Config).run()
"""


@contextlib.contextmanager
def running(refused):
    """A supervisor of two workers, to which these forks are refused; whatever happens, all of them are gone at the end."""
    argv = [sys.executable, "-c", SCRIPT, refused]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def worker(process):
    """The process id of the next worker that is there."""
    line = process.stdout.readline()
    assert line, "the supervisor has ended"
    return int(line.split()[1])


def end(process):
    process.send_signal(signal.SIGTERM)
    _, log = process.communicate(timeout=LIMIT)
    assert process.returncode == 0
    return log


def test_worker_that_cannot_be_replaced_at_once():
    """While no further process may be had the other workers serve on, and the lost one is replaced when one may."""
    with running("3,4") as process:
        first, second = worker(process), worker(process)
        os.kill(first, signal.SIGKILL)
        third = worker(process)
        os.kill(second, 0)
        assert third not in (first, second)
        assert end(process).count("worker_cannot_start") == 2


def test_start_with_fewer_processes_than_wanted():
    """A start that is refused a process at first comes to all of its workers."""
    with running("2") as process:
        assert worker(process) != worker(process)
        assert end(process).count("worker_cannot_start") == 1
