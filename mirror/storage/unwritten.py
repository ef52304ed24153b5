"""Facts on their way into the index: known at once to this process, written by a thread, so that no answer waits for the disk."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Final

# Facts that wait for a disk that hangs. Those beyond are not written: they are learned again.
_MAX_WAITING: Final = 100_000


@dataclass(frozen=True, slots=True, eq=False)
class _Fact:
    value: object
    write: Callable[[], None] | None


class UnwrittenFacts:
    """Writes facts one after the other, in the order in which they came. Any thread may use it."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._lock = threading.Lock()
        self._facts: dict[Hashable, _Fact] = {}
        self._is_writing = False

    def __len__(self) -> int:
        return len(self._facts)

    def get(self, key: Hashable) -> object:
        """The value of a fact that is not written yet, or None."""
        fact = self._facts.get(key)
        return None if fact is None else fact.value

    def put(self, key: Hashable, value: object, write: Callable[[], None] | None = None) -> None:
        """Have a fact written.

        Args:
            write: writes it; called in a thread. None if facts that were put before write this one, too.
        """
        with self._lock:
            if key not in self._facts and len(self._facts) >= _MAX_WAITING:
                return
            self._facts[key] = _Fact(value, write)
            if self._is_writing:
                return
            self._is_writing = True
        try:
            self._executor.submit(self._write_all)
        except RuntimeError:
            # The store is being closed.
            self._is_writing = False

    def marked(self) -> Future[None]:
        """A future that is done when everything that was put until now has been written, or is given up."""
        future: Future[None] = Future()
        self.put(future, None, lambda: future.set_result(None))
        return future

    def _write_all(self) -> None:
        while (first := self._first()) is not None:
            key, fact = first
            try:
                # What cannot be written is learned again: the table has logged why.
                with contextlib.suppress(Exception):
                    if fact.write is not None:
                        fact.write()
            finally:
                with self._lock:
                    # Another value may have come meanwhile; it is written next.
                    if self._facts.get(key) is fact:
                        del self._facts[key]

    def _first(self) -> tuple[Hashable, _Fact] | None:
        with self._lock:
            first = next(iter(self._facts.items()), None)
            if first is None:
                self._is_writing = False
            return first
