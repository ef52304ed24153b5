"""Facts about the store kept in memory until its generation changes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

from mirror.storage.generation import Generation

T = TypeVar("T")

_MAX_BYTES = 32 << 20
_MAX_ENTRIES = 4096
_MAX_VALUE_BYTES = 256 << 10


class GenerationCache(Generic[T]):
    """A bounded cache that evicts the least recently used entry, and is emptied when the generation changes.

    Args:
        max_entries: an additional bound to that of bytes.
    """

    def __init__(self, generation: Generation, max_entries: int = _MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._generation = generation
        self._seen = generation.current()
        self._entries: OrderedDict[Hashable, tuple[T, int, float]] = OrderedDict()
        self._bytes = 0

    def generation(self) -> bytes:
        """The current generation. Read it before the store, and pass it to `put`."""
        return self._generation.current()

    def get(self, key: Hashable, now: float) -> T | None:
        """The value under a key, None if there is none or it has expired at `now`."""
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

    def put(self, key: Hashable, value: T, size: int, expires: float, generation: bytes) -> None:
        """Keep a value of `size` bytes, unless the generation has changed since `generation` was read."""
        if size > _MAX_VALUE_BYTES or generation != self._seen or generation != self._generation.current():
            return
        self._drop(key)
        self._entries[key] = (value, size, expires)
        self._bytes += size
        while self._bytes > _MAX_BYTES or len(self._entries) > self._max_entries:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: Hashable) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry[1]
