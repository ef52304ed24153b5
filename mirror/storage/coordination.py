"""Coordination of the processes that share a store: locks, and the one way to wait for another process.

A lock is tried, never waited for: the kernel signals no event when another process frees one, so `wait` and `wait_in_thread` try
again. The kernel frees the locks of a process that ends. A lease that a whole cluster shares needs the same methods only:
`try_acquire`, `release` and `close`.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import math
import os
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial

from mirror.core.digest import Digest
from mirror.errors import StorageError
from mirror.storage.errors import storage_errors

# struct flock, as 64-bit Linux has it.
_FLOCK = struct.Struct("hhqqi4x")
# The pause between two attempts doubles from the first to the longest: most waits are for microseconds.
_FIRST_PAUSE_S = 0.0001
_MAX_PAUSE_S = 0.02
_MAX_LEADER_PAUSE_S = 2.0
# Another process needs as long as upstream does; after this the work is done twice.
_TURN_TIMEOUT_S = 5.0
# Hexadecimal digits of a digest that choose the byte to lock: two digests hardly ever share one.
_TURN_DIGITS = 15


async def wait(attempt: Callable[[], bool], timeout_s: float, max_pause_s: float = _MAX_PAUSE_S) -> bool:
    """Try until an attempt succeeds; False if none did within `timeout_s` seconds."""
    if attempt():
        return True
    for pause in _pauses(timeout_s, max_pause_s):
        await asyncio.sleep(pause)
        if attempt():
            return True
    return False


def wait_in_thread(attempt: Callable[[], bool], timeout_s: float, is_over: Callable[[], bool] = lambda: False) -> bool:
    """Like `wait`, but block; also False as soon as it `is_over`."""
    if attempt():
        return True
    for pause in _pauses(timeout_s, _MAX_PAUSE_S):
        if is_over():
            return False
        time.sleep(pause)
        if attempt():
            return True
    return False


def _pauses(timeout_s: float, max_pause_s: float) -> Iterator[float]:
    deadline, pause = time.monotonic() + timeout_s, _FIRST_PAUSE_S
    while (left := deadline - time.monotonic()) > 0:
        yield min(pause, left)
        pause = min(2 * pause, max_pause_s)


class FileLock:
    """An exclusive lock on a file (flock(2)).

    Args:
        path: the file, which is created if it does not exist.

    Attributes:
        descriptor: the open file.

    Raises:
        StorageError: from the constructor, if the file cannot be opened.
    """

    def __init__(self, path: str) -> None:
        with storage_errors(f"opening {path}"):
            self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def try_acquire(self) -> bool:
        """Try to lock the file; False if another holder has it. True again for the holder."""
        try:
            fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Free the lock and close the file."""
        os.close(self.descriptor)


class LeaderLock(FileLock):
    """Elects one process for work that only one may do: the one that holds the lock, until it closes it or ends."""

    async def elected(self) -> None:
        """Wait, for as long as it takes, until this process is the leader."""
        await wait(self.try_acquire, math.inf, _MAX_LEADER_PAUSE_S)


class RangeLock:
    """Locks on ranges of a file (F_OFD_SETLK, fcntl(2)): they hold between processes and between two instances in one process.

    Raises:
        StorageError: no descriptor is left, from the constructor; or the kernel has no lock left.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = reopened(descriptor, os.O_RDWR)

    def try_acquire(self, start: int, length: int) -> bool:
        """Try to lock a range of bytes; False if another holder has a part of it."""
        return self._set(fcntl.F_WRLCK, start, length)

    def try_share(self, start: int, length: int) -> bool:
        """Try to lock a range together with others that share it; False if another holder has acquired a part of it."""
        return self._set(fcntl.F_RDLCK, start, length)

    def release(self, start: int, length: int) -> None:
        """Free a range."""
        self._set(fcntl.F_UNLCK, start, length)

    def close(self) -> None:
        """Free all ranges."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _set(self, kind: int, start: int, length: int) -> bool:
        request = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
        with storage_errors("locking a range of a file"):
            try:
                fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, request)
            except (BlockingIOError, PermissionError):
                return False
        return True


def is_locked(descriptor: int, start: int, length: int) -> bool:
    """Whether another open file description has a `RangeLock` on a range (F_OFD_GETLK, fcntl(2))."""
    request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
    kind: int = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, request))[0]
    return kind != fcntl.F_UNLCK


def reopened(descriptor: int, flags: int) -> int:
    """Return a new open file description of the same file, even if its name is gone: locks and offsets belong to a description.

    Raises:
        StorageError: no descriptor is left.
    """
    with storage_errors("opening a file again"):
        return os.open(f"/proc/self/fd/{descriptor}", flags | os.O_CLOEXEC)


class KeyedLock:
    """A lock for each digest: processes do the same work one after the other, and the later ones find it done.

    Args:
        path: the file of which each digest locks a byte; it is created if it does not exist.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    @contextlib.asynccontextmanager
    async def turn(self, digest: Digest) -> AsyncIterator[None]:
        """Hold the lock of a digest; after some seconds, or without a descriptor, go on without it: it only saves work."""
        async with contextlib.AsyncExitStack() as stack:
            with contextlib.suppress(OSError, StorageError):
                lock = stack.enter_context(contextlib.closing(self._open()))
                await wait(partial(lock.try_acquire, int(digest.encoded[:_TURN_DIGITS], 16), 1), _TURN_TIMEOUT_S)
            yield

    def _open(self) -> RangeLock:
        with contextlib.closing(FileLock(self._path)) as file:
            return RangeLock(file.descriptor)
