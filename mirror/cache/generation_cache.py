"""Facts about the store kept in memory until its generation changes."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

from mirror.core.bounded_cache import BoundedCache
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
        self._generation = generation
        self._seen = generation.current()
        self._entries: BoundedCache[Hashable, T] = BoundedCache(max_entries, _MAX_BYTES)

    def generation(self) -> bytes:
        """The current generation. Read it before the store, and pass it to `put`."""
        return self._generation.current()

    def get(self, key: Hashable, now: float) -> T | None:
        """The value under a key, None if there is none or it has expired at `now`."""
        current = self._generation.current()
        if current != self._seen:
            self._entries.clear()
            self._seen = current
            return None
        return self._entries.get(key, now)

    def put(self, key: Hashable, value: T, size: int, expires: float, generation: bytes) -> None:
        """Keep a value of `size` bytes, unless the generation has changed since `generation` was read."""
        if size > _MAX_VALUE_BYTES or generation != self._seen or generation != self._generation.current():
            return
        self._entries.put(key, value, expires=expires, size=size)
