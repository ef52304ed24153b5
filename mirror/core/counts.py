"""Counts that several processes keep together in one piece of memory.

Each process writes only the cells of its own slot, so a change needs neither a lock nor an atomic instruction, and reads the
cells of all. Whoever wants one more adds it first and looks at the sum then: two processes that do so at once may both be
refused, but never are both let in beyond the limit. What a process that died had counted goes with its slot, which
its parent clears.

A row for each client address is found by a hash of it, in a bucket of a few rows; only taking a new row needs a lock. If
all rows of a bucket are in use, or the lock is not to be had, the address has no row: each process then counts it for itself.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b
from typing import Final


class Total(enum.IntEnum):
    """What is counted of all addresses together, and what the queue for connections to upstreams has to say."""

    CONNECTIONS = 0
    """Of clients."""
    UPSTREAM = 1
    """Connections for blobs to upstreams, in use."""
    PREFETCHING = 2
    """Those of them that were given for prefetching."""
    YIELDING = 3
    """Those of them that are about to be given back."""
    URGENT = 4
    """Clients that wait for one."""
    BEST = 5
    """The urgency of who is the next to get one here, plus one; 0 if nobody waits."""
    SINCE = 6
    """Since when that one waits, in milliseconds."""
    SEEN = 7
    """When the queue was looked at last, in milliseconds."""
    ABANDONED = 8
    """Downloads that nobody reads any more."""
    PREFETCHES = 9
    """Blobs being prefetched."""
    ADMIN_CONNECTIONS = 10
    """Of operators."""


class Field(enum.IntEnum):
    """What is counted of one client address."""

    REFERENCES = 0
    """1 in a process that counts something of it: the row is in use as long as there is one."""
    CONNECTIONS = 1
    REQUESTS = 2
    DOWNLOADS = 3
    """That it has begun and that somebody reads."""


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
    """One number, of which each process has a part."""

    __slots__ = ("_cells", "_own")

    def __init__(self, cells: memoryview, own: int) -> None:
        self._cells = cells
        self._own = own

    def __iter__(self) -> Iterator[int]:
        return iter(self._cells)

    @property
    def total(self) -> int:
        """Of all processes."""
        return sum(self._cells)

    @property
    def own(self) -> int:
        """Of this process."""
        return int(self._cells[self._own])

    @own.setter
    def own(self, value: int) -> None:
        self._cells[self._own] = value

    def enter(self, limit: int) -> bool:
        """Count one more, unless that is more than `limit` of all processes; 0 is no limit."""
        cells, own = self._cells, self._own
        cells[own] += 1
        if limit and sum(cells) > limit:
            cells[own] -= 1
            return False
        return True

    def leave(self) -> None:
        """Count one less."""
        self._cells[self._own] -= 1


class ClientCounts:
    """What one client address has under way, in all processes.

    Attributes:
        references: of this process: whoever counts something here holds one.
    """

    __slots__ = ("connections", "downloads", "key", "references", "requests", "row")

    def __init__(self, key: bytes, row: int | None, cells: Callable[[Field], Count]) -> None:
        self.key = key
        self.row = row
        self.references = 0
        self.connections, self.requests, self.downloads = map(cells, (Field.CONNECTIONS, Field.REQUESTS, Field.DOWNLOADS))


class CountTable:
    """All counts, seen from one process.

    Args:
        memory: `CountTable.size(slots)` bytes, zero at first, shared by all processes.
        slots: most processes at a time.
        own: the slot of this one.
        exclusive: keeps the other processes from taking rows; its value says whether that could be had.

    Attributes:
        received: bytes that each slot has received from upstreams. They only grow: whoever takes a slot over counts on.
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
        """Bytes that are needed; what is never used of them costs nothing where memory is given by the page."""
        return _ROWS * _KEY + slots * (_SLOT * _CELL + _WIDE_CELL)

    @classmethod
    def private(cls) -> CountTable:
        """One for a process that shares with nobody."""
        return cls(memoryview(bytearray(cls.size(1))))

    def count(self, total: Total) -> Count:
        """A number that is of no address."""
        return Count(self._cells[total::_SLOT], self.own)

    def clear(self, slot: int) -> None:
        """Forget what a process that has ended had counted."""
        start = slot * _SLOT
        self._cells[start : start + _SLOT] = memoryview(bytes(_SLOT * _CELL)).cast("I")

    # ---- clients

    def acquire(self, address: str) -> ClientCounts:
        """What is counted of an address; give it back with `release`."""
        key = blake2b(address.encode(), digest_size=_KEY).digest()
        client = self._clients.get(key)
        if client is None:
            row = self._take_row(key)
            client = self._clients[key] = ClientCounts(key, row, lambda field: self._field(row, field))
        self.hold(client)
        return client

    def hold(self, client: ClientCounts) -> None:
        """Hold once more what has been acquired."""
        client.references += 1

    def release(self, client: ClientCounts) -> None:
        """Hold it no longer."""
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
        """The row of an address, marked as in use by this process; None if there is none."""
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
