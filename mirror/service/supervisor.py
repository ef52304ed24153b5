"""Supervises the worker processes: starts them, replaces those that die, and forwards signals.

The supervisor has no event loop and no threads, so it can fork at any time. Workers share the ports and the store without it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog

from mirror.config.model import Config
from mirror.errors import ConfigurationError
from mirror.service.sd_notify import notify
from mirror.service.watchdog import Heartbeats, ServiceWatchdog

log = structlog.get_logger(__name__)

_STOP_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT})
HANDLED_SIGNALS = _STOP_SIGNALS | {signal.SIGHUP, signal.SIGCHLD}
# A worker that dies sooner would die again if it were replaced at once.
_MIN_LIFETIME_S = 5.0
_MAX_PAUSE_S = 30.0
_FORK_PAUSE_S = 2.0
_STARTUP_TIMEOUT_S = 60.0
# Longer than a worker's drain.
_STOP_TIMEOUT_S = 40.0


@dataclass(frozen=True)
class Worker:
    """What a worker starts from.

    SIGTERM and SIGHUP are blocked until the worker has handlers for them, so that none is lost or kills it. SIGINT is ignored:
    a terminal sends it to the supervisor, too.

    Attributes:
        config: the current configuration.
        slot: a number from 0 that no other running worker has; the replacement of a dead worker may have the same.
        lifeline: a descriptor that becomes readable when the supervisor has died.
        ready: the worker calls it when it answers requests.
        beat: the worker's event loop calls it at least every `watchdog.WORKER_INTERVAL_S`; a worker that stops is replaced.
    """

    config: Config
    slot: int
    lifeline: int
    ready: Callable[[], None]
    beat: Callable[[], None]


class Supervisor:
    """Keeps a number of workers running until SIGTERM.

    Args:
        work: runs a worker; the process exits when it returns.
        config: the first workers start from it.
        load: reads the configuration again; an invalid one is not forwarded to the workers.
        ended: called with the slot of each worker that has ended, before another worker gets the slot.
    """

    def __init__(
        self,
        count: int,
        work: Callable[[Worker], None],
        config: Config,
        load: Callable[[], Config],
        ended: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._count = count
        self._work = work
        self._config = config
        self._load = load
        self._ended = ended
        self._heartbeats = Heartbeats(count)
        self._watchdog = ServiceWatchdog()
        self._running: dict[int, float] = {}
        self._slots: dict[int, int] = {}
        self._deaths = 0
        self._start_after = 0.0
        self._stopping = False
        self._refused = False

    def run(self) -> None:
        """Start the workers, and return when all have ended after a SIGTERM.

        Raises:
            ConfigurationError: no worker could be started.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED_SIGNALS)
        self._lifeline, self._lifeline_writer = os.pipe()
        self._ready, self._ready_writer = os.pipe()
        try:
            for _ in range(self._count):
                self._start()
            self._await_ready()
            if not self._stopping:
                notify("READY=1", f"STATUS=Serving with {self._count} workers")
            while not self._stopping:
                self._step()
            self._stop()
        finally:
            for pid in self._running:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for descriptor in (self._lifeline, self._lifeline_writer, self._ready, self._ready_writer):
                os.close(descriptor)

    def _start(self) -> None:
        slot = min(set(range(self._count)) - set(self._slots.values()))
        self._heartbeats.clear(slot)
        try:
            pid = os.fork()
        except OSError as error:
            # The system allows no further process now, for example at TasksMax. The running workers continue.
            log.error("worker_cannot_start", problems=[error.strerror], next_in_seconds=_FORK_PAUSE_S)
            self._start_after = time.monotonic() + _FORK_PAUSE_S
            return
        if pid:
            self._running[pid], self._slots[pid] = time.monotonic(), slot
            return
        status = 1
        try:
            os.close(self._lifeline_writer)
            # Only the supervisor notifies the service manager.
            os.environ.pop("NOTIFY_SOCKET", None)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            beat = partial(self._heartbeats.beat, slot)
            self._work(Worker(self._config, slot, self._lifeline, self._report_ready, beat))
            status = 0
        except ConfigurationError as error:
            log.error("worker_cannot_start", problems=error.problems)
            status = 2
        except BaseException:  # noqa: BLE001 - the process ends here whatever it was
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            # Without the cleanup of the supervisor's objects, which this process has copies of.
            os._exit(status)

    def _report_ready(self) -> None:
        os.write(self._ready_writer, b"r")

    def _await_ready(self) -> None:
        waiting, deadline = self._count, time.monotonic() + _STARTUP_TIMEOUT_S
        while waiting and not self._stopping:
            if select.select([self._ready], [], [], 0.1)[0]:
                waiting -= len(os.read(self._ready, waiting))
            self._step(0.0)
            # A killed worker is replaced during the start, too; one that cannot start would fail again.
            if self._refused or time.monotonic() > deadline:
                raise ConfigurationError(["workers: they could not be started; the log says why"])

    def _step(self, timeout: float = 1.0) -> None:
        """Handle at most one signal, reap workers that have ended, and start a missing one if it is due."""
        self._watchdog.beat()
        caught = signal.sigtimedwait(HANDLED_SIGNALS, timeout)
        number = caught.si_signo if caught is not None else None
        if number in _STOP_SIGNALS:
            self._stopping = True
        elif number == signal.SIGHUP:
            self._reload()
        self._reap()
        self._abort_blocked()
        if not self._stopping and len(self._running) < self._count and time.monotonic() >= self._start_after:
            self._start()

    def _reap(self) -> None:
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            started = self._running.pop(pid, 0.0)
            if (slot := self._slots.pop(pid, None)) is not None:
                self._ended(slot)
            if self._stopping:
                continue
            self._refused = self._refused or os.waitstatus_to_exitcode(status) > 0
            early = time.monotonic() - started < _MIN_LIFETIME_S
            self._deaths = self._deaths + 1 if early else 1
            pause = min(_MAX_PAUSE_S, 2.0 ** (self._deaths - 2)) if self._deaths > 1 else 0.0
            self._start_after = time.monotonic() + pause
            log.error("worker_died", pid=pid, status=os.waitstatus_to_exitcode(status), next_in_seconds=pause)

    def _abort_blocked(self) -> None:
        self._heartbeats.look()
        for pid, slot in self._slots.items():
            if self._heartbeats.is_blocked(slot):
                log.error("worker_blocked", pid=pid, consequence="it is replaced")
                # Once: writing the stacks of its threads may take a moment.
                self._heartbeats.clear(slot)
                os.kill(pid, signal.SIGABRT)

    def _reload(self) -> None:
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            self._config = self._load()
        except ConfigurationError as error:
            log.error("configuration_refused", problems=error.problems)
        else:
            self._send(signal.SIGHUP)
        notify("READY=1")

    def _stop(self) -> None:
        notify("STOPPING=1")
        self._send(signal.SIGTERM)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while self._running and time.monotonic() < deadline:
            self._watchdog.beat()
            caught = signal.sigtimedwait(HANDLED_SIGNALS, 0.2)
            if caught is not None and caught.si_signo in _STOP_SIGNALS:
                # A second request to stop skips the drain.
                self._send(signal.SIGTERM)
            self._reap()

    def _send(self, number: signal.Signals) -> None:
        for pid in self._running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
