"""Answers kept in memory, as long as nothing in the store has stopped being true."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from mirror.storage.generation import Generation

T = TypeVar("T")

_MAX_BYTES = 32 << 20
_MAX_ENTRIES = 4096
_LARGEST = 256 << 10


class Memory(Generic[T]):
    """A bounded, least recently used memory of answers.

    Args:
        entries: how many at most.
    """

    def __init__(self, generation: Generation, entries: int = _MAX_ENTRIES) -> None:
        self._most_entries = entries
        self._generation = generation
        self._seen = generation.current()
        self._entries: OrderedDict[Hashable, tuple[T, int, float]] = OrderedDict()
        self._bytes = 0

    def generation(self) -> bytes:
        """To be taken before looking at the store, and given to `put`."""
        return self._generation.current()

    def get(self, key: Hashable, now: float) -> T | None:
        """What is remembered under a key and still good at `now`."""
        current = self._generation.current()
        if current != self._seen:
            self._entries.clear()
            self._bytes, self._seen = 0, current
            return None
        entry = self._entries.get(key)
        if entry is None or entry[2] <= now:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: Hashable, value: T, size: int, good_until: float, generation: bytes) -> None:
        """Remember a value of `size` bytes that was found after `generation` was taken."""
        if size > _LARGEST or generation != self._seen or generation != self._generation.current():
            return
        self._drop(key)
        self._entries[key] = (value, size, good_until)
        self._bytes += size
        while self._bytes > _MAX_BYTES or len(self._entries) > self._most_entries:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry[1]
