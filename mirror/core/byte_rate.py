"""How fast the bytes of blobs may arrive from upstreams, in all processes of a mirror together.

A connection that has received bytes learns when the rate allows more. It waits until then whatever others receive meanwhile, so
connections that receive as fast as they may take turns, and what one does not use the others get. Each process counts what it
has received in a cell of its own and reads the cells of all: there is no lock and no server. A process that has been idle
may be ahead of the others by `BURST_S` of the rate.
"""

from __future__ import annotations

from typing import Final

from mirror.core.counts import CountTable

BURST_S: Final = 0.1
"""What is not received now may be received within this time: timers are late, and connections begin slowly."""
MIN_QUANTUM: Final = 16 << 10
_QUANTUM_S: Final = 0.02


class ByteRate:
    """The rate, seen from one process. Times are in seconds, of any monotonic clock."""

    def __init__(self, table: CountTable) -> None:
        self._received = table.received
        self._own = table.own
        self._limit = self._seen = 0
        # When all that has been received is within the rate.
        self._due = float("-inf")

    @property
    def limit(self) -> int:
        """Bytes a second; 0: none."""
        return self._limit

    @limit.setter
    def limit(self, value: int) -> None:
        if value != self._limit:
            # Nothing was counted without a limit, and another one makes other times of what was.
            self._limit, self._seen, self._due = value, sum(self._received), float("-inf")

    @property
    def quantum(self) -> int:
        """The most bytes that a connection should receive at once under a limit, so that all of them get a turn soon."""
        return max(MIN_QUANTUM, int(self._limit * _QUANTUM_S))

    def spend(self, count: int, now: float) -> float:
        """Count bytes that have been received; the seconds after which the same connection may receive more."""
        if not self._limit:
            return 0.0
        self._received[self._own] += count
        total = sum(self._received)
        others = (total - self._seen - count) / self._limit
        self._due = max(self._due + others, now - BURST_S) + count / self._limit
        self._seen = total
        return max(0.0, self._due - now)
