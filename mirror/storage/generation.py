"""A number that changes whenever something in the store stops being true, so that every process can trust its memory."""

from __future__ import annotations

import os


class Generation:
    """One random number in a file, shared by all processes of a store.

    What a process remembers of the store is good as long as the number is the one it saw before it looked.
    """

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if len(self.current()) != 8:
            self.change()

    def current(self) -> bytes:
        """The number; costs less than a microsecond."""
        return os.pread(self._descriptor, 8, 0)

    def change(self) -> None:
        """Make every process forget what it remembers."""
        os.pwrite(self._descriptor, os.urandom(8), 0)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._descriptor)
