"""A lease by which the nodes of a cluster elect one of them for work that only one should do."""

from __future__ import annotations

import asyncio
import time

from mirror.cluster.link import Link, LinkDown, Script

_TTL_MS, _INTERVAL_S = 15_000, 5.0
# Before another node can have it: a call may take a moment.
_VALID_S = 12.0

# KEYS: lease. ARGV: node, TTL.
_TAKE = Script("""
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
""")


class LeaderLease:
    """Elects a node, while Redis answers. Two leaders for a moment do no harm: what they do they do twice.

    Args:
        key: of the lease.
        me: the name of this node.
    """

    def __init__(self, link: Link, key: str, me: str) -> None:
        self._link = link
        self._key = key
        self._me = me
        self._until = float("-inf")

    def leads(self) -> bool:
        """Whether this node is the leader."""
        return time.monotonic() < self._until

    async def run(self) -> None:
        """Take or renew the lease until cancelled. One process of a node may."""
        while True:
            await self.take()
            await asyncio.sleep(_INTERVAL_S)

    async def take(self) -> None:
        """Take or renew the lease, unless another node has it."""
        asked = time.monotonic()
        try:
            is_mine = await self._link.call(_TAKE, [self._key], self._me, _TTL_MS)
        except LinkDown:
            return
        self._until = asked + _VALID_S if is_mine else float("-inf")
