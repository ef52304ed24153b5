"""What client addresses have begun, and what all clients have left: both bounded, over all processes of the mirror.

What somebody reads counts for the address that began it. What nobody reads any more counts for no address, but there is only so
much of it: the next that is left is stopped, and its bytes stay for the next pull.
"""

from __future__ import annotations

import asyncio

from mirror.aio import Signal
from mirror.core.counts import ClientCounts, CountTable, Total
from mirror.errors import TooManyDownloads

# How often it is looked at what other processes have ended, and how long a client waits at most. Seconds.
_LOOK_S, _TIMEOUT_S = 0.05, 15.0


class Share:
    """The place of one download in the counts.

    Args:
        client: the address that began it, None if that was no client.
        read: it has been counted for the address already.
    """

    def __init__(self, shares: Shares, client: ClientCounts | None, *, read: bool = False) -> None:
        if client is not None:
            shares.table.hold(client)
        self._shares = shares
        self._client = client
        self._read, self._abandoned = read, False

    def another(self) -> Share:
        """The place of a second try."""
        return Share(self._shares, self._client)

    def read(self) -> None:
        """A client reads it, perhaps again."""
        if self._client is None or self._read:
            return
        self._no_longer_abandoned()
        self._read = True
        self._client.downloads.enter(0)

    def abandon(self) -> bool:
        """The last client has left; False if too many are abandoned already."""
        if self._client is None or not self._read:
            return True
        self._no_longer_read()
        self._abandoned = self._shares.abandoned.enter(self._shares.most_abandoned)
        return self._abandoned

    def end(self) -> None:
        """It has come to its end."""
        self._no_longer_read()
        self._no_longer_abandoned()
        if self._client is not None:
            self._shares.table.release(self._client)
            self._client = None

    def _no_longer_read(self) -> None:
        if self._read and self._client is not None:
            self._client.downloads.leave()
            self._shares.fallen.pulse()
        self._read = False

    def _no_longer_abandoned(self) -> None:
        if self._abandoned:
            self._shares.abandoned.leave()
        self._abandoned = False


class Shares:
    """The bounds.

    Attributes:
        abandoned: downloads that all clients have left.
        fallen: pulses whenever an address has one less.
    """

    def __init__(self, table: CountTable) -> None:
        self.table = table
        self.abandoned = table.count(Total.ABANDONED)
        self.most_abandoned = self._per_address = 1
        self.fallen = Signal()

    def configure(self, connections: int, per_address: int) -> None:
        """Change the bounds.

        Args:
            connections: to upstreams; half of them may be busy with what clients have left.
            per_address: most downloads of one address; 0 is half of the connections, too.
        """
        self.most_abandoned = max(1, connections // 2)
        self._per_address = per_address or self.most_abandoned

    def begin(self, client: ClientCounts | None) -> Share | None:
        """The place of a download that is about to be read; None if the address has as many under way as it may.

        Args:
            client: the address that begins it; None if that is no client.
        """
        if client is not None and not client.downloads.enter(self._per_address):
            return None
        return Share(self, client, read=client is not None)

    async def turn(self, client: ClientCounts) -> None:
        """Wait until an address may begin one more.

        Raises:
            TooManyDownloads: that takes too long.
        """
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                while client.downloads.total >= self._per_address:
                    await self.fallen.wait(_LOOK_S)
        except TimeoutError as error:
            raise TooManyDownloads(f"limits.downloads_per_address: {self._per_address} are under way") from error
