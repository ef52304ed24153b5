"""Notifications that one node sends for all nodes of a cluster.

The first node that finds an event takes it. What it sends is kept in Redis until it has arrived or failed, so that another node
sends it if that one dies. A receiver can tell a repetition by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mirror.cluster.keys import Keys
from mirror.cluster.link import Link, Script
from mirror.core.notice import Notice

LEASE_S: Final = 60.0
"""How long a node may send a notification without renewing its lease; then another node takes it over."""

_TOLD_MS: Final = 90 * 86_400_000
_WAITING_MS: Final = 86_400_000
# Of one call: entries whose content has expired.
_MAX_DROPPED: Final = 100

# KEYS: what was told, leases, notice. ARGV: digest, ms since the node has found another one, TTL of what was told, name, content,
# its TTL, lease in ms. What was told is DIGEST|TIME.
_OFFER: Final = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local digest, told = string.match(redis.call('GET', KEYS[1]) or '', '^(.*)|(%d+)$')
if digest == ARGV[1] and tonumber(told) >= now - ARGV[2] then return 0 end
redis.call('SET', KEYS[1], ARGV[1] .. '|' .. now, 'PX', ARGV[3])
redis.call('SET', KEYS[3], ARGV[5], 'PX', ARGV[6])
redis.call('ZADD', KEYS[2], now + ARGV[7], ARGV[4])
redis.call('PEXPIRE', KEYS[2], ARGV[6])
return 1
""")
# KEYS: leases. ARGV: lease in ms, names.
_RENEW: Final = Script("""
local time = redis.call('TIME')
local till = time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1]
for number = 2, #ARGV do redis.call('ZADD', KEYS[1], 'XX', till, ARGV[number]) end
""")
_END: Final = Script("redis.call('ZREM', KEYS[1], ARGV[1]); redis.call('DEL', KEYS[2])")
# KEYS: leases. ARGV: prefix of the keys of notices, lease in ms, maximum of entries without content.
_TAKE: Final = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[3])) do
  local content = redis.call('GET', ARGV[1] .. name)
  if content then
    redis.call('ZADD', KEYS[1], now + ARGV[2], name)
    return {name, content}
  end
  redis.call('ZREM', KEYS[1], name)
end
""")


class SharedNotices:
    """The notifications of a cluster. Each method raises LinkDown.

    Args:
        takes_over: whether this process looks for notifications of nodes that have died; one of each node does.
    """

    def __init__(self, link: Link, keys: Keys, *, takes_over: bool) -> None:
        self.takes_over = takes_over
        self._link = link
        self._keys = keys

    async def offer(self, receiver: str, digest: str, age_s: float, notice: Notice) -> bool:
        """Take a notification; False if a node has taken it already.

        It has if the last one about this image names the same digest, and is no older than the last check of this node that found
        another one. So a tag that moves back and forth is told each time.

        Args:
            receiver: stands for the URL; nodes with different ones share nothing.
            age_s: seconds since that check began.
        """
        keys = [self._keys.told(receiver, notice.kind, notice.image), *self._of(receiver, notice.name)]
        content = b"%b\n%b\n%b" % (notice.kind.encode(), notice.image.encode(), notice.body)
        told = digest, _milliseconds(age_s), _TOLD_MS
        return bool(await self._link.call(_OFFER, keys, *told, notice.name, content, _WAITING_MS, _milliseconds(LEASE_S)))

    async def renew(self, receiver: str, names: Sequence[str], lease_s: float = LEASE_S) -> None:
        """Keep notifications for another `lease_s` seconds; with 0 seconds they are left to the other nodes."""
        await self._link.call(_RENEW, [self._keys.notices(receiver)], _milliseconds(lease_s), *names)

    async def end(self, receiver: str, name: str) -> None:
        """Note that a notification has arrived, or is given up."""
        await self._link.call(_END, self._of(receiver, name), name)

    async def take(self, receiver: str) -> Notice | None:
        """Take a notification that its node has not renewed; None if there is none."""
        keys = self._keys.notices(receiver), self._keys.notice("")
        found = await self._link.call(_TAKE, keys[:1], keys[1], _milliseconds(LEASE_S), _MAX_DROPPED)
        if not found:
            return None
        try:
            name = found[0].decode()
            kind, image, body = found[1].split(b"\n", 2)
            return Notice(name, kind.decode(), image.decode(), body)
        except ValueError:
            # Of another version. Its name expires with the others.
            return None

    def _of(self, receiver: str, name: str) -> list[str]:
        return [self._keys.notices(receiver), self._keys.notice(name)]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
