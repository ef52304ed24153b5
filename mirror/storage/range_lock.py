"""Locks on ranges of a file, of one open file description each (F_OFD_SETLK, fcntl(2)): good between processes and inside one."""

from __future__ import annotations

import fcntl
import os
import struct

# struct flock, as 64-bit Linux has it.
_FLOCK = struct.Struct("hhqqi4x")


class Lock:
    """Locks of one open file description; freed by the kernel when it is closed or its process dies."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = reopened(descriptor, os.O_RDWR)

    def take(self, start: int, length: int) -> bool:
        """Try to lock a range of bytes; False if another holder has some of it."""
        return self._set(fcntl.F_WRLCK, start, length)

    def share(self, start: int, length: int) -> bool:
        """Try to lock a range together with others who share it; False if somebody has taken some of it."""
        return self._set(fcntl.F_RDLCK, start, length)

    def release(self, start: int, length: int) -> None:
        """Give a range back."""
        self._set(fcntl.F_UNLCK, start, length)

    def close(self) -> None:
        """Give everything back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    def _set(self, kind: int, start: int, length: int) -> bool:
        request = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
        try:
            fcntl.fcntl(self._descriptor, fcntl.F_OFD_SETLK, request)
        except (BlockingIOError, PermissionError):
            return False
        return True


def reopened(descriptor: int, flags: int) -> int:
    """A new open file description of the same file, even if its name is gone: locks and offsets are per description."""
    return os.open(f"/proc/self/fd/{descriptor}", flags | os.O_CLOEXEC)
