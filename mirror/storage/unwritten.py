"""Facts on their way to the index: visible to this process at once, written by a thread, so that no answer waits for the disk."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Final

# While the disk hangs. Further facts are not written; they are learned again.
_MAX_WAITING: Final = 100_000
# The response that a fact comes from is sent first: writing it would take the interpreter and the disk from the first byte.
_DELAY_S: Final = 0.003


@dataclass(frozen=True, slots=True, eq=False)
class _Fact:
    value: object
    write: Callable[[], None] | None


class UnwrittenFacts:
    """Writes facts in the order in which they were put, some milliseconds later. Any thread may use it."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._lock = threading.Lock()
        self._facts: dict[Hashable, _Fact] = {}
        self._is_writing = False
        self._is_awaited = threading.Event()

    def __len__(self) -> int:
        return len(self._facts)

    def get(self, key: Hashable) -> object:
        """Return the value of a fact that is not written yet, or None."""
        fact = self._facts.get(key)
        return None if fact is None else fact.value

    def put(self, key: Hashable, value: object, write: Callable[[], None] | None = None) -> None:
        """Schedule the writing of a fact.

        Args:
            write: writes it, in a thread. None if the `write` of an earlier fact includes this one.
        """
        self._put(key, value, write, must=False)

    def put_now(self, key: Hashable, value: object, write: Callable[[], None]) -> None:
        """Have a fact written now that nobody learns again; so it is kept even if too many wait."""
        self._is_awaited.set()
        self._put(key, value, write, must=True)

    def _put(self, key: Hashable, value: object, write: Callable[[], None] | None, *, must: bool) -> None:
        with self._lock:
            if not must and key not in self._facts and len(self._facts) >= _MAX_WAITING:
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
        """Have what was put so far written now; return a future that is done when every fact of it is written or has failed."""
        future: Future[None] = Future()
        self._is_awaited.set()
        self.put(future, None, lambda: future.set_result(None))
        return future

    def _write_all(self) -> None:
        self._is_awaited.wait(_DELAY_S)
        self._is_awaited.clear()
        while (first := self._first()) is not None:
            key, fact = first
            try:
                # A fact that cannot be written is learned again; the table has logged the cause.
                with contextlib.suppress(Exception):
                    if fact.write is not None:
                        fact.write()
            finally:
                with self._lock:
                    # A newer value is written next.
                    if self._facts.get(key) is fact:
                        del self._facts[key]

    def _first(self) -> tuple[Hashable, _Fact] | None:
        with self._lock:
            first = next(iter(self._facts.items()), None)
            if first is None:
                self._is_writing = False
            return first
