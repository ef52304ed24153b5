"""Reports that event loops run: each worker reports to the supervisor, and the main process to the service manager.

A process with a blocked event loop is alive, but answers no request. The supervisor or the service manager sends it SIGABRT and
starts another one. On SIGABRT it writes the stack of each thread to standard error.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import time
from collections.abc import Callable

from mirror.service.sd_notify import notify

WORKER_INTERVAL_S = 1.0
WORKER_LIMIT_S = 60.0
"""A worker whose event loop has not run for this time is replaced. No call on the event loop should take a fraction of it."""
_TIME_BYTES = 8
# The supervisor looks at the reports each second. If it has not for this time, the whole mirror stood still.
_STANDSTILL_S = 10.0


class Heartbeats:
    """The time of the last report of each worker, in memory that the processes share. A worker writes its own slot only."""

    def __init__(self, slots: int) -> None:
        self._times = memoryview(mmap.mmap(-1, _TIME_BYTES * slots)).cast("d")
        self._looked = self._lenient_until = 0.0

    def clear(self, slot: int) -> None:
        """Forget the process that had the slot."""
        self._times[slot] = 0.0

    def beat(self, slot: int) -> None:
        """Record that a worker's event loop runs."""
        self._times[slot] = time.monotonic()

    def look(self) -> None:
        """Begin a look of the supervisor at all workers.

        After a standstill of the mirror, in a frozen container or an overloaded machine, they get `WORKER_LIMIT_S` anew.
        """
        now = time.monotonic()
        if now - self._looked > _STANDSTILL_S:
            self._lenient_until = now + WORKER_LIMIT_S
        self._looked = now

    def is_blocked(self, slot: int) -> bool:
        """Whether a worker has reported before, but not within `WORKER_LIMIT_S`."""
        return self._lenient_until <= self._looked and 0.0 < self._times[slot] < self._looked - WORKER_LIMIT_S


class ServiceWatchdog:
    """Sends keep-alive messages to the service manager, if its watchdog is enabled (sd_watchdog_enabled(3)).

    Attributes:
        interval: seconds from one message to the next; None if there is no watchdog.
    """

    def __init__(self) -> None:
        text, pid = os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", "")
        mine = text.isascii() and text.isdigit() and int(text) > 0 and pid in ("", str(os.getpid()))
        # Half of the limit, as sd_watchdog_enabled(3) recommends.
        self.interval = int(text) / 2e6 if mine else None
        self._due = 0.0

    def beat(self) -> None:
        """Send a message if one is due."""
        now = time.monotonic()
        if self.interval is not None and now >= self._due:
            self._due = now + self.interval
            notify("WATCHDOG=1")


async def keep_beating(beat: Callable[[], None], interval: float) -> None:
    """Call `beat` every `interval` seconds. A blocked event loop makes no calls."""
    while True:
        beat()
        await asyncio.sleep(interval)
