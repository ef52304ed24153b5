"""A cache in memory that is bounded by items, bytes and time."""

import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Item(NamedTuple, Generic[V]):
    value: V
    expires: float
    size: int


class BoundedCache(Generic[K, V]):
    """Keeps the most recently used items. Times are seconds on any clock.

    Args:
        max_items: the least recently used ones beyond are dropped.
        max_bytes: bound of the sizes that `put` is given.
    """

    __slots__ = ("_bytes", "_items", "_max_bytes", "_max_items")

    def __init__(self, max_items: int, max_bytes: float = math.inf) -> None:
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._items: OrderedDict[K, _Item[V]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._items)

    def __contains__(self, key: K) -> bool:
        return key in self._items

    def get(self, key: K, now: float = -math.inf) -> V | None:
        """The value of a key, None if there is none or it has expired by `now`."""
        item = self._items.get(key)
        if item is None:
            return None
        if item.expires <= now:
            self.pop(key)
            return None
        self._items.move_to_end(key)
        return item.value

    def put(self, key: K, value: V, *, expires: float = math.inf, size: int = 0) -> None:
        """Keep a value of `size` bytes until `expires`, in the place of an earlier one."""
        self.pop(key)
        self._items[key] = _Item(value, expires, size)
        self._bytes += size
        while self._items and (len(self._items) > self._max_items or self._bytes > self._max_bytes):
            self.pop(next(iter(self._items)))

    def pop(self, key: K) -> V | None:
        """Drop a key; returns its value, expired or not."""
        item = self._items.pop(key, None)
        if item is None:
            return None
        self._bytes -= item.size
        return item.value

    def clear(self) -> None:
        """Drop everything."""
        self._items.clear()
        self._bytes = 0
