"""Counts that several processes keep together in one piece of memory.

Each process writes only the cells of its own slot and reads the cells of all, so a change needs neither a lock nor an atomic
instruction. To enter, a process first adds one and then compares the sum with the limit: two processes at once may both be
refused, but are never both admitted beyond the limit. The parent clears the slot of a process that has died.

The row of a client address is found by its hash, in a bucket of a few rows; only taking a new row needs a lock. If all rows of
a bucket are in use, or the lock is not available, the address has no row, and each process counts it by itself.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b
from typing import Final


class Total(enum.IntEnum):
    """What is counted over all addresses, and the state of the queue for upstream connections."""

    CONNECTIONS = 0
    """Connections of clients."""
    UPSTREAM = 1
    """Upstream connections for blobs, in use."""
    PREFETCHING = 2
    """Those of them that prefetch."""
    YIELDING = 3
    """Those of them that are about to be released."""
    URGENT = 4
    """Clients that wait for such a connection."""
    BEST = 5
    """The urgency of the next in the queue of this process, plus one; 0 if the queue is empty."""
    SINCE = 6
    """When the next in the queue began to wait, in milliseconds."""
    SEEN = 7
    """When the queue was last processed, in milliseconds."""
    ABANDONED = 8
    """Downloads without readers."""
    PREFETCHES = 9
    """Blobs being prefetched."""
    ADMIN_CONNECTIONS = 10
    """Connections to the admin address."""
    NODE_CONNECTIONS = 11
    """Connections of other nodes of the cluster."""
    EXPORTS = 12
    """Bundles being written."""
    NEWS = 13
    """Changes of upstreams that this process has heard of from other nodes of the cluster, or has told them."""


class Field(enum.IntEnum):
    """What is counted of one client address."""

    REFERENCES = 0
    """1 in a process that uses the row; the row is free when all are 0."""
    CONNECTIONS = 1
    REQUESTS = 2
    DOWNLOADS = 3
    """Downloads that it started and that have readers."""


_CELL: Final = 4
_KEY: Final = 16
_ROWS_OF_BUCKET: Final = 16
_BUCKETS: Final = 1024
_ROWS: Final = _ROWS_OF_BUCKET * _BUCKETS
# Cells of one slot: the totals first.
_TOTALS: Final = 16
_SLOT: Final = _TOTALS + _ROWS * len(Field)
_WIDE_CELL: Final = 8


class Count:
    """A number of which each process has a part."""

    __slots__ = ("_cells", "_own")

    def __init__(self, cells: memoryview, own: int) -> None:
        self._cells = cells
        self._own = own

    def __iter__(self) -> Iterator[int]:
        return iter(self._cells)

    @property
    def total(self) -> int:
        """The sum over all processes."""
        return sum(self._cells)

    @property
    def own(self) -> int:
        """The part of this process."""
        return int(self._cells[self._own])

    @own.setter
    def own(self, value: int) -> None:
        self._cells[self._own] = value

    def enter(self, limit: int) -> bool:
        """Add one, unless the sum would exceed `limit`; 0 is no limit."""
        cells, own = self._cells, self._own
        cells[own] += 1
        if limit and sum(cells) > limit:
            cells[own] -= 1
            return False
        return True

    def leave(self) -> None:
        """Subtract one."""
        self._cells[self._own] -= 1


class ClientCounts:
    """The counts of a client address, in all processes.

    Attributes:
        address: the address, or the network that counts as one.
        references: users in this process.
    """

    __slots__ = ("address", "connections", "downloads", "key", "references", "requests", "row")

    def __init__(self, address: str, key: bytes, row: int | None, cells: Callable[[Field], Count]) -> None:
        self.address = address
        self.key = key
        self.row = row
        self.references = 0
        self.connections, self.requests, self.downloads = map(cells, (Field.CONNECTIONS, Field.REQUESTS, Field.DOWNLOADS))


class CountTable:
    """All counts, seen from one process.

    Args:
        memory: `CountTable.size(slots)` zero bytes, shared by all processes.
        slots: the maximum number of processes.
        own: the slot of this process.
        exclusive: a lock between processes for taking rows; its value is False if the lock is not available.

    Attributes:
        received: bytes that each slot has received from upstreams. They only grow: the next owner of a slot continues its count.
    """

    def __init__(
        self,
        memory: memoryview,
        slots: int = 1,
        own: int = 0,
        exclusive: Callable[[], AbstractContextManager[bool]] = lambda: nullcontext(True),
    ) -> None:
        self.slots = slots
        self.own = own
        self._keys = memory[: _ROWS * _KEY]
        end = _ROWS * _KEY + slots * _SLOT * _CELL
        self._cells = memory[_ROWS * _KEY : end].cast("I")
        self.received = memory[end : end + slots * _WIDE_CELL].cast("Q")
        self._exclusive = exclusive
        self._clients: dict[bytes, ClientCounts] = {}

    @staticmethod
    def size(slots: int) -> int:
        """The bytes that a table needs. Pages that are never used take no memory."""
        return _ROWS * _KEY + slots * (_SLOT * _CELL + _WIDE_CELL)

    @classmethod
    def private(cls) -> CountTable:
        """A table for a single process."""
        return cls(memoryview(bytearray(cls.size(1))))

    def count(self, total: Total) -> Count:
        """A count over all addresses."""
        return Count(self._cells[total::_SLOT], self.own)

    def clear(self, slot: int) -> None:
        """Clear the counts of a process that has ended."""
        start = slot * _SLOT
        self._cells[start : start + _SLOT] = memoryview(bytes(_SLOT * _CELL)).cast("I")

    # ---- clients

    def acquire(self, address: str, name: str = "") -> ClientCounts:
        """The counts of an address; call `release` after use.

        Args:
            name: of the listener, each of which counts apart.
        """
        key = blake2b(f"{name} {address}".encode(), digest_size=_KEY).digest()
        client = self._clients.get(key)
        if client is None:
            row = self._take_row(key)
            client = self._clients[key] = ClientCounts(address, key, row, lambda field: self._field(row, field))
        self.hold(client)
        return client

    def hold(self, client: ClientCounts) -> None:
        """Add a user."""
        client.references += 1

    def release(self, client: ClientCounts) -> None:
        """Remove a user."""
        client.references -= 1
        if client.references:
            return
        del self._clients[client.key]
        if client.row is not None:
            self._field(client.row, Field.REFERENCES).own = 0

    def _field(self, row: int | None, field: Field) -> Count:
        if row is None:
            return Count(memoryview(bytearray(_CELL)).cast("I"), 0)
        return Count(self._cells[_TOTALS + row * len(Field) + field :: _SLOT], self.own)

    def _take_row(self, key: bytes) -> int | None:
        """Find or take the row of an address and mark it as used by this process; None if there is none."""
        bucket = int.from_bytes(key[:4], "little") % _BUCKETS
        rows = range(bucket * _ROWS_OF_BUCKET, (bucket + 1) * _ROWS_OF_BUCKET)
        with self._exclusive() as alone:
            if not alone:
                return None
            free = None
            for row in rows:
                used = self._field(row, Field.REFERENCES).total
                if used and self._keys[row * _KEY : (row + 1) * _KEY] == key:
                    break
                if not used and free is None:
                    free = row
            else:
                if free is None:
                    return None
                row = free
                self._keys[row * _KEY : (row + 1) * _KEY] = key
            self._field(row, Field.REFERENCES).own = 1
            return row
