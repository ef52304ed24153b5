"""Elects one process of a store for work that only one may do: the one that has the lock, until it ends."""

from __future__ import annotations

import fcntl
import os


class LeaderLock:
    """A lock that a process keeps until it closes it or dies.

    Args:
        path: of the lock's file, which is made if need be.
    """

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def won(self) -> bool:
        """Whether this process is the one, from now on or already."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._descriptor)
