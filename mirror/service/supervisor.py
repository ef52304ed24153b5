"""Supervises the worker processes: starts them, replaces those that die, and passes signals on.

The supervisor has no event loop and no threads, so it may fork at any time. The workers need nothing from it but to be there:
they share the ports and the store by themselves.
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

import structlog

from mirror.config.model import Config
from mirror.errors import ConfigurationError
from mirror.service.sd_notify import notify

log = structlog.get_logger(__name__)

_END = frozenset({signal.SIGTERM, signal.SIGINT})
HEARD = _END | {signal.SIGHUP, signal.SIGCHLD}
# A worker that lived shorter than this died of something that another try at once will not mend. Seconds.
_YOUNG = 5.0
_LONGEST_PAUSE = 30.0
_FORK_PAUSE_S = 2.0
_STARTUP = 60.0
# Longer than a worker's own drain.
_STOP = 40.0


@dataclass(frozen=True)
class Worker:
    """What a worker is given.

    SIGTERM and SIGHUP are blocked until it has handlers for them, so that none is lost or kills it; SIGINT is ignored, because
    a terminal sends it to the supervisor as well.

    Attributes:
        config: the configuration of the day.
        slot: a number from 0 on that no other worker has; one that replaces another may have the same.
        lifeline: becomes readable when the supervisor has died.
        ready: to be called when requests are answered.
    """

    config: Config
    slot: int
    lifeline: int
    ready: Callable[[], None]


class Supervisor:
    """Keeps a number of workers running until SIGTERM.

    Args:
        work: what a worker does; its return is its end.
        config: what the first workers start from.
        load: reads the configuration again; a wrong one is not passed on to the workers.
        ended: told the slot of each worker that has ended, before another one gets it.
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
        self._started: dict[int, float] = {}
        self._slots: dict[int, int] = {}
        self._deaths = 0
        self._start_after = 0.0
        self._stopping = False
        self._refused = False

    def run(self) -> None:
        """Start the workers, and return when all of them have ended after a SIGTERM.

        Raises:
            ConfigurationError: no worker could be started.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
        self._lifeline, self._kept = os.pipe()
        self._ready, self._tell = os.pipe()
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
            for pid in self._started:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for descriptor in (self._lifeline, self._kept, self._ready, self._tell):
                os.close(descriptor)

    def _start(self) -> None:
        slot = min(set(range(self._count)) - set(self._slots.values()))
        try:
            pid = os.fork()
        except OSError as error:
            # The machine gives no further process just now, as at TasksMax. Those that there are serve on.
            log.error("worker_cannot_start", problems=[error.strerror], next_in_seconds=_FORK_PAUSE_S)
            self._start_after = time.monotonic() + _FORK_PAUSE_S
            return
        if pid:
            self._started[pid], self._slots[pid] = time.monotonic(), slot
            return
        status = 1
        try:
            os.close(self._kept)
            # Only the supervisor speaks to the service manager.
            os.environ.pop("NOTIFY_SOCKET", None)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._work(Worker(self._config, slot, self._lifeline, self._say_ready))
            status = 0
        except ConfigurationError as error:
            log.error("worker_cannot_start", problems=error.problems)
            status = 2
        except BaseException:  # noqa: BLE001 - the process ends here whatever it was
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            # Nothing of the supervisor's, which this process is a copy of, may be wound up here.
            os._exit(status)

    def _say_ready(self) -> None:
        os.write(self._tell, b"r")

    def _await_ready(self) -> None:
        waiting, deadline = self._count, time.monotonic() + _STARTUP
        while waiting and not self._stopping:
            if select.select([self._ready], [], [], 0.1)[0]:
                waiting -= len(os.read(self._ready, waiting))
            self._step(0.0)
            # A worker that was killed is replaced, at this time as at any other; one that cannot start would fail again.
            if self._refused or time.monotonic() > deadline:
                raise ConfigurationError(["workers: they could not be started; the log says why"])

    def _step(self, timeout: float = 1.0) -> None:
        """Deal with one signal, and with what is due."""
        caught = signal.sigtimedwait(HEARD, timeout)
        number = caught.si_signo if caught is not None else None
        if number in _END:
            self._stopping = True
        elif number == signal.SIGHUP:
            self._reload()
        self._reap()
        if not self._stopping and len(self._started) < self._count and time.monotonic() >= self._start_after:
            self._start()

    def _reap(self) -> None:
        while self._started:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            born = self._started.pop(pid, 0.0)
            if (slot := self._slots.pop(pid, None)) is not None:
                self._ended(slot)
            if self._stopping:
                continue
            self._refused = self._refused or os.waitstatus_to_exitcode(status) > 0
            young = time.monotonic() - born < _YOUNG
            self._deaths = self._deaths + 1 if young else 1
            pause = min(_LONGEST_PAUSE, 2.0 ** (self._deaths - 2)) if self._deaths > 1 else 0.0
            self._start_after = time.monotonic() + pause
            log.error("worker_died", pid=pid, status=os.waitstatus_to_exitcode(status), next_in_seconds=pause)

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
        deadline = time.monotonic() + _STOP
        while self._started and time.monotonic() < deadline:
            caught = signal.sigtimedwait(HEARD, 0.2)
            if caught is not None and caught.si_signo in _END:
                # Whoever asks twice does not want to wait.
                self._send(signal.SIGTERM)
            self._reap()

    def _send(self, number: signal.Signals) -> None:
        for pid in self._started:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
