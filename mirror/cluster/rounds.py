"""Rounds of the resync that all nodes share: what one node has checked since a round began, no other node checks in it."""

from __future__ import annotations

from mirror.cluster.link import Link, LinkDown, Script

# A node begins a round up to a fifth of the interval early: all of them join the round of the first one.
_JOINED_SHARE = 0.75

# KEYS: round. ARGV: ms for which nodes join it.
_JOIN = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local began = tonumber(redis.call('GET', KEYS[1]) or '')
if began and began <= now and now - began < tonumber(ARGV[1]) then return now - began end
redis.call('SET', KEYS[1], string.format('%.0f', now), 'PX', ARGV[1])
return 0
""")


class SharedRounds:
    """The rounds of a cluster.

    Args:
        key: of the present round.
    """

    def __init__(self, link: Link, key: str) -> None:
        self._link = link
        self._key = key

    async def join(self, interval: float) -> float:
        """Join the present round, or begin one if it is too old; returns its age in seconds. Without Redis it has just begun.

        Args:
            interval: seconds between scheduled runs.
        """
        try:
            return float(await self._link.call(_JOIN, [self._key], max(1, round(_JOINED_SHARE * interval * 1000)))) / 1000
        except LinkDown:
            return 0.0
