"""Memory that the processes of one mirror share: made before they are forked, and gone with the last of them."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from functools import partial

from mirror.core.counts import CountTable
from mirror.storage.coordination import RangeLock, wait_in_thread

# A process holds the lock for some microseconds; one that holds it for longer has been stopped.
_LOCK_TIMEOUT_S = 0.005


class SharedCounts:
    """The memory of a `CountTable`, and the lock that belongs to it.

    Args:
        slots: most processes at a time.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        # Anonymous: a process that is killed leaves nothing behind on any disk.
        self._memory = memoryview(mmap.mmap(-1, CountTable.size(slots)))
        self._file = os.memfd_create("registry-mirror", os.MFD_CLOEXEC)

    def table(self, slot: int) -> CountTable:
        """The counts as one process sees them; to be called in that process."""
        # Of an open file description of its own: else the lock would be one of all processes.
        lock = RangeLock(self._file)
        return CountTable(self._memory, self._slots, slot, lambda: _exclusive(lock))

    def clear(self, slot: int) -> None:
        """Forget what a process that has ended had counted."""
        CountTable(self._memory, self._slots, slot).clear(slot)


@contextlib.contextmanager
def _exclusive(lock: RangeLock) -> Iterator[bool]:
    acquired = wait_in_thread(partial(lock.try_acquire, 0, 1), _LOCK_TIMEOUT_S)
    try:
        yield acquired
    finally:
        if acquired:
            lock.release(0, 1)
