"""Memory that the processes of one mirror share: mapped before the fork, and freed with the last process."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from functools import partial

from mirror.core.counts import CountTable
from mirror.storage.coordination import RangeLock, wait_in_thread

# A process holds the lock for some microseconds; one that holds it longer is suspended.
_LOCK_TIMEOUT_S = 0.005


class SharedCounts:
    """The memory of a `CountTable`, and its lock.

    Args:
        slots: the maximum of processes at a time.
    """

    def __init__(self, slots: int) -> None:
        self._slots = slots
        # Anonymous: a killed process leaves no file.
        self._memory = memoryview(mmap.mmap(-1, CountTable.size(slots)))
        self._file = os.memfd_create("registry-mirror", os.MFD_CLOEXEC)

    def table(self, slot: int) -> CountTable:
        """Return the counts for the process of a slot, which has to call it itself."""
        # A lock belongs to an open file description: each process needs its own.
        lock = RangeLock(self._file)
        return CountTable(self._memory, self._slots, slot, lambda: _exclusive(lock))

    def clear(self, slot: int) -> None:
        """Reset the counts of a process that has ended."""
        CountTable(self._memory, self._slots, slot).clear(slot)


@contextlib.contextmanager
def _exclusive(lock: RangeLock) -> Iterator[bool]:
    acquired = wait_in_thread(partial(lock.try_acquire, 0, 1), _LOCK_TIMEOUT_S)
    try:
        yield acquired
    finally:
        if acquired:
            lock.release(0, 1)
