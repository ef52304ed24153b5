"""Shows that event loops turn: those of the workers to the supervisor, and the process to the service manager.

A blocked event loop serves nobody, but its process is alive. Whoever watches ends it by SIGABRT, at which it writes where each of
its threads is, and starts another one.
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
"""A worker whose event loop has not turned for so long is replaced. Far longer than any call that a loop should make."""
_TIME_BYTES = 8


class Heartbeats:
    """When the event loop of each worker turned last, in memory that the processes share; a worker writes its own slot only."""

    def __init__(self, slots: int) -> None:
        self._times = memoryview(mmap.mmap(-1, _TIME_BYTES * slots)).cast("d")

    def clear(self, slot: int) -> None:
        """Forget the process that had the slot."""
        self._times[slot] = 0.0

    def beat(self, slot: int) -> None:
        """Note a turn of a worker's event loop."""
        self._times[slot] = time.monotonic()

    def is_blocked(self, slot: int) -> bool:
        """Whether an event loop that has turned does not turn any more."""
        return 0.0 < self._times[slot] < time.monotonic() - WORKER_LIMIT_S


class ServiceWatchdog:
    """Tells the service manager that this process works, if it wants to know (sd_watchdog_enabled(3)).

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
    """Call `beat` every `interval` seconds, as long as the event loop turns."""
    while True:
        beat()
        await asyncio.sleep(interval)
