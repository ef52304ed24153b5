"""The readers of a download, and the limits on downloads: per client address, and on those that all clients have left.

A download with readers counts for the address that started it. A download whose clients have all left counts for no address,
but the number of those is limited: one more is stopped, and its bytes stay for the next pull. All processes of the mirror share
the counts.
"""

from __future__ import annotations

import asyncio
from collections import Counter

from mirror.aio import Signal
from mirror.core.counts import ClientCounts, CountTable, Total
from mirror.core.urgency import Urgency
from mirror.errors import TooManyDownloads

# How often the downloads that other processes have ended are looked at, and how long a client waits at most.
_POLL_INTERVAL_S, _TIMEOUT_S = 0.05, 15.0


class Readers:
    """The readers of one download in this process, counted by urgency.

    Attributes:
        addresses: how many of them each client address has.
    """

    def __init__(self) -> None:
        self._counts = dict.fromkeys(Urgency, 0)
        self.addresses: Counter[str] = Counter()
        # Applies while there is no reader: SYNC until the first one that is not the resync has joined.
        self._left = Urgency.SYNC

    def __len__(self) -> int:
        return sum(self._counts.values())

    @property
    def clients(self) -> int:
        """The number of readers that are clients."""
        return self._counts[Urgency.CLIENT]

    @property
    def urgency(self) -> Urgency:
        """The highest urgency of a reader."""
        return next((urgency for urgency, count in self._counts.items() if count), self._left)

    def join(self, urgency: Urgency, address: str | None = None) -> None:
        """Add a reader; `address` is its client's, if it has one."""
        self._counts[urgency] += 1
        if address is not None:
            self.addresses[address] += 1
        if urgency is not Urgency.SYNC:
            self._left = Urgency.ABANDONED

    def leave(self, urgency: Urgency, address: str | None = None) -> None:
        """Remove a reader."""
        self._counts[urgency] -= 1
        if address is not None:
            self.addresses[address] -= 1
            if not self.addresses[address]:
                del self.addresses[address]


class Share:
    """The place of one download in the counts.

    Args:
        client: the address that started it; None if no client did.
        counted: the address counts it already.
    """

    def __init__(self, shares: Shares, client: ClientCounts | None, *, counted: bool = False) -> None:
        if client is not None:
            shares.table.hold(client)
        self._shares = shares
        self._client = client
        self._counted, self._abandoned = counted, False

    def another(self) -> Share:
        """The place of a second attempt."""
        return Share(self._shares, self._client)

    def resume(self) -> None:
        """Count the download for its address: a client reads it."""
        if self._client is not None and not self._counted:
            self._leave_abandoned()
            self._counted = True
            self._client.downloads.enter(0)

    def abandon(self) -> bool:
        """Count the download as one that all clients have left; False if there are too many of those."""
        if self._client is None or not self._counted:
            return True
        self._leave_address()
        self._abandoned = self._shares.abandoned.enter(self._shares.max_abandoned)
        return self._abandoned

    def end(self) -> None:
        """Remove the download, which has ended, from the counts."""
        self._leave_address()
        self._leave_abandoned()
        if self._client is not None:
            self._shares.table.release(self._client)
            self._client = None

    def _leave_address(self) -> None:
        if self._counted and self._client is not None:
            self._client.downloads.leave()
            self._shares.released.pulse()
        self._counted = False

    def _leave_abandoned(self) -> None:
        if self._abandoned:
            self._shares.abandoned.leave()
        self._abandoned = False


class Shares:
    """The limits on downloads.

    Attributes:
        abandoned: counts the downloads that all clients have left.
        max_abandoned: the limit on that count.
        released: pulsed when the count of an address falls.
    """

    def __init__(self, table: CountTable) -> None:
        self.table = table
        self.abandoned = table.count(Total.ABANDONED)
        self.max_abandoned = self._per_address = 1
        self.released = Signal()

    def configure(self, connections: int, per_address: int) -> None:
        """Change the limits.

        Args:
            connections: limit of the upstream connections; downloads that all clients have left may use half of them.
            per_address: limit of the downloads of one address; 0 stands for half of the connections.
        """
        self.max_abandoned = max(1, connections // 2)
        self._per_address = per_address or self.max_abandoned

    def begin(self, client: ClientCounts | None) -> Share | None:
        """The place of a download that starts now; None if its address has reached the limit.

        Args:
            client: the address that starts it; None if no client does.
        """
        if client is not None and not client.downloads.enter(self._per_address):
            return None
        return Share(self, client, counted=client is not None)

    async def wait(self, client: ClientCounts) -> None:
        """Wait until an address is below its limit.

        Raises:
            TooManyDownloads: the wait exceeds its bound.
        """
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                while client.downloads.total >= self._per_address:
                    await self.released.wait(_POLL_INTERVAL_S)
        except TimeoutError as error:
            raise TooManyDownloads(f"limits.downloads_per_address: {self._per_address} are under way") from error
