"""A number that changes whenever something in the store stops being true, so that every process can trust its memory."""

from __future__ import annotations

import os

import structlog

log = structlog.get_logger(__name__)


class Generation:
    """One random number in a file, shared by all processes of a store.

    What a process remembers of the store is good as long as the number is the one it saw before it looked.
    """

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # Of changes that could not be written down.
        self._own = b""
        if len(os.pread(self._descriptor, 8, 0)) != 8:
            self.change()

    def current(self) -> bytes:
        """The number; costs less than a microsecond."""
        return os.pread(self._descriptor, 8, 0) + self._own

    def change(self) -> None:
        """Make every process forget what it remembers; on a disk that cannot be written at least this one does."""
        number = os.urandom(8)
        try:
            os.pwrite(self._descriptor, number, 0)
        except OSError as error:
            self._own = number
            log.warning("generation_not_written", cause=str(error), consequence="other workers learn of this change later")

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._descriptor)
