"""A number that changes whenever cached facts about the store become stale, so that processes can cache them in memory."""

from __future__ import annotations

import os

import structlog

log = structlog.get_logger(__name__)


class Generation:
    """One random number in a file, shared by all processes of a store.

    A cached fact is valid as long as the number is the one that was read before the fact.

    Attributes:
        descriptor: the open file.
    """

    def __init__(self, path: str) -> None:
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        # The last change that could not be written.
        self._own = b""
        if len(os.pread(self.descriptor, 8, 0)) != 8:
            self.change()

    def current(self) -> bytes:
        """Return the number. Costs less than a microsecond."""
        return os.pread(self.descriptor, 8, 0) + self._own

    def change(self) -> None:
        """Invalidate what every process has cached; on a disk that cannot be written, this process only."""
        number = os.urandom(8)
        try:
            os.pwrite(self.descriptor, number, 0)
        except OSError as error:
            self._own = number
            log.warning("generation_not_written", cause=str(error), consequence="other workers learn of this change later")

    def close(self) -> None:
        """Close the file."""
        os.close(self.descriptor)
