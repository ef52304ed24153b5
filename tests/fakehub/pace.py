"""How fast bytes may leave."""

import asyncio

PIECE = 64 * 1024
# An event loop wakes up late by a millisecond or so; this much lost time may be made good.
CREDIT = 0.02


class Bucket:
    """Shares `rate` bytes a second among all who take from it, in the order in which they ask."""

    def __init__(self) -> None:
        self._free_at = 0.0

    async def take(self, size: int, rate: float | None) -> None:
        if not rate:
            return
        now = asyncio.get_running_loop().time()
        self._free_at = max(self._free_at, now - CREDIT) + size / rate
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)


def piece(*rates: float | None) -> int:
    """The largest piece to write at once: small enough that a slow body still flows."""
    slowest = min((rate for rate in rates if rate), default=0)
    return max(1, min(PIECE, int(slowest / 20))) if slowest else PIECE
