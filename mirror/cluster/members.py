"""The nodes of a cluster: each one writes a beat into Redis, and is forgotten soon after its last one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from mirror import __version__
from mirror.cluster.identity import Identity
from mirror.cluster.keys import Keys
from mirror.cluster.link import Link, LinkDown, Script
from mirror.cluster.secret import ClusterSecret
from mirror.metrics import Metrics
from mirror.throttled_log import ThrottledLog

log = structlog.get_logger(__name__)

TTL_S = 15
"""Seconds after its last beat for which a node counts as living."""

_INTERVAL_S = 5.0
# While Redis is down, to join again soon after it is back.
_JOIN_INTERVAL_S = 0.25
_MAX_OFFSET_S = 5.0
# Of what other nodes say.
_MAX_TEXT, _MAX_NUMBER = 200, 1e12

# KEYS: nodes, this node. ARGV: name (nothing: only count), facts, TTL in seconds.
_BEAT = Script("""
local time = redis.call('TIME')
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', time[1] - ARGV[3])
if ARGV[1] ~= '' then
  redis.call('ZADD', KEYS[1], time[1], ARGV[1])
  redis.call('EXPIRE', KEYS[1], 4 * ARGV[3])
  redis.call('SET', KEYS[2], ARGV[2], 'EX', ARGV[3])
end
return {redis.call('ZCARD', KEYS[1]), time[1], time[2]}
""")
_LEAVE = Script("redis.call('ZREM', KEYS[1], ARGV[1]); redis.call('DEL', KEYS[2])")
# KEYS: nodes. ARGV: prefix of the keys of nodes, TTL in seconds.
_LIST = Script("""
local time, found = redis.call('TIME'), {}
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], time[1] - ARGV[2], '+inf')) do
  local facts = redis.call('GET', ARGV[1] .. name)
  if facts then found[#found + 1] = name; found[#found + 1] = facts end
end
return found
""")


@dataclass(frozen=True)
class Member:
    """A node that has beaten lately.

    Attributes:
        name: the URL of its address for other nodes.
        facts: what it says of itself: `version`, `state` (up or draining), `started` in seconds since the epoch, `zone`,
            `clock` (what the clock of Redis is ahead of its own, in seconds), and `owed`, uploads to the bucket.
    """

    name: str
    facts: dict[str, Any]


class Members:
    """This node among the others.

    Args:
        me: this node.

    Attributes:
        state: what this node says of itself: up or draining.
        owed: returns the uploads to the bucket that this node owes.
        count: the number of nodes; 0 while Redis does not answer.
    """

    def __init__(self, link: Link, keys: Keys, me: Identity, secret: ClusterSecret, metrics: Metrics) -> None:
        self.state = "up"
        self.owed: Callable[[], int] = int
        self.count = 0
        self.clock: Callable[[], float] = time.time
        self._link = link
        self._keys = keys
        self._me = me
        self._secret = secret
        self._metrics = metrics
        self._started = round(time.time())
        self._log = ThrottledLog(log, burst=1, interval=600.0)

    async def run(self, *, beats: bool) -> None:
        """Beat until cancelled.

        Args:
            beats: whether this process does so for its node; otherwise it only counts the nodes.
        """
        while True:
            await self._secret.refresh()
            await self.beat(beats=beats)
            await asyncio.sleep(_INTERVAL_S if self._link.is_up else _JOIN_INTERVAL_S)

    async def beat(self, *, beats: bool = True) -> None:
        """Write one beat, count the nodes, and compare the clocks."""
        me = self._me.name
        try:
            count, seconds, micros = await self._link.call(
                _BEAT, [self._keys.nodes, self._keys.node(me)], me if beats else "", self._facts(), TTL_S
            )
        except LinkDown:
            self.count = 0
        else:
            self.count = int(count)
            self._compare(int(seconds) + int(micros) / 1e6 - self.clock())
        self._metrics.cluster_nodes.set(self.count)

    async def leave(self) -> None:
        """Take this node off the list."""
        with contextlib.suppress(LinkDown):
            await self._link.call(_LEAVE, [self._keys.nodes, self._keys.node(self._me.name)], self._me.name)

    async def list(self) -> list[Member]:
        """The nodes, by their names. Raises LinkDown."""
        found = await self._link.call(_LIST, [self._keys.nodes], self._keys.node(""), TTL_S)
        return sorted(
            (Member(name.decode(errors="replace"), _facts(facts)) for name, facts in zip(*[iter(found)] * 2, strict=True)),
            key=_name,
        )

    def _facts(self) -> str:
        """What this node says of itself."""
        return json.dumps(
            {
                "version": __version__,
                "state": self.state,
                "started": self._started,
                "zone": self._me.zone,
                "clock": round(self._secret.offset, 3),
                "owed": self.owed(),
            }
        )

    def _compare(self, offset: float) -> None:
        self._secret.offset = offset
        self._metrics.cluster_clock_offset.set(offset)
        if abs(offset) > _MAX_OFFSET_S:
            self._log.log("warning", "clock_differs", seconds=round(offset, 1), consequence="the time of Redis counts")


def _name(member: Member) -> str:
    return member.name


def _facts(text: bytes) -> dict[str, Any]:
    """The facts of a beat, without those of another version."""
    try:
        found = json.loads(text)
        return {key: found[key] for key, is_right in _FACTS.items() if key in found and is_right(found[key])}
    except (ValueError, TypeError, RecursionError):
        return {}


def _is_text(fact: object) -> bool:
    return isinstance(fact, str) and len(fact) <= _MAX_TEXT


def _is_number(fact: object) -> bool:
    return isinstance(fact, (int, float)) and abs(fact) < _MAX_NUMBER


_FACTS = {
    "version": _is_text,
    "state": _is_text,
    "started": _is_number,
    "zone": _is_text,
    "clock": _is_number,
    "owed": _is_number,
}
