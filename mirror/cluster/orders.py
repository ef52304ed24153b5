"""Orders that the nodes of a cluster share: what each node says of its part lies in Redis, where any node can read it.

All nodes carry out an order for `all`, each one for its own store. An order for `one` belongs to the node that took it, as long
as that node reports; after that another node takes it over. A record expires a day after the last report.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mirror.cluster.events import MAX_EVENTS
from mirror.cluster.keys import Keys
from mirror.cluster.link import Link, LinkRefused, Script
from mirror.cluster.members import TTL_S

_LOST_AFTER_S, _REPORTS_BEFORE = 20.0, 4
_EXPIRY_S = 86400
# The same order is one only until a node begins it. A node that Redis did not hear begin must not collect orders for ever.
_SAME_MS = 60_000
# An order that ends the nodes that carry it out must not end all of them.
_MAX_TAKEOVERS = 3
_MAX_OPEN = 100

_NOW = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""

# KEYS: order, the order that is the same, orders for one, events, nodes. ARGV: name, this node, job, share, prefix of orders, TTL
# and ms for the same order, ms until it is lost, maximum of events, TTL of nodes.
_ADD = Script(
    _NOW
    + """
local known = redis.call('GET', KEYS[2])
local job, cancelled = unpack(redis.call('HMGET', ARGV[5] .. (known or ''), 'job', 'cancelled'))
if job and not cancelled then
  redis.call('HSET', ARGV[5] .. known, 'asked', string.format('%.0f', now))
  return known
end
local function told(node) redis.call('HSET', KEYS[1], 'n:' .. node, string.format('%.0f', now) .. '|') end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[7])
redis.call('HSET', KEYS[1], 'job', ARGV[3], 'asked', string.format('%.0f', now), 'owner', ARGV[2])
told(ARGV[2])
if ARGV[4] == 'all' then
  for _, node in ipairs(redis.call('ZRANGEBYSCORE', KEYS[5], time[1] - ARGV[10], '+inf')) do told(node) end
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[9], '*', 'kind', 'ordered', 'node', ARGV[2], 'order', ARGV[1])
else
  redis.call('ZADD', KEYS[3], now + ARGV[8], ARGV[1])
end
redis.call('EXPIRE', KEYS[1], ARGV[6])
return ARGV[1]
"""
)

# KEYS: order, the order that is the same. ARGV: name, this node, share.
_BEGIN = Script(
    _NOW
    + """
local job, asked, owner, cancelled = unpack(redis.call('HMGET', KEYS[1], 'job', 'asked', 'owner', 'cancelled'))
if not job then return -1 end
if cancelled or (ARGV[3] == 'one' and owner ~= ARGV[2]) then return -2 end
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
return math.max(0, now - tonumber(asked))
"""
)

# KEYS: order, orders for one. ARGV: name, this node, report, whether it is the last one, share, TTL, ms until the order is lost,
# and the job, with which an order is written again that Redis has lost.
_REPORT = Script(
    _NOW
    + """
if redis.call('HEXISTS', KEYS[1], 'job') == 0 then
  if ARGV[8] == '' then return 'unknown' end
  redis.call('HSET', KEYS[1], 'job', ARGV[8], 'asked', string.format('%.0f', now), 'owner', ARGV[2])
end
if ARGV[5] == 'one' and redis.call('HGET', KEYS[1], 'owner') ~= ARGV[2] then return 'other' end
redis.call('HSET', KEYS[1], 'n:' .. ARGV[2], string.format('%.0f', now) .. '|' .. ARGV[3])
redis.call('EXPIRE', KEYS[1], ARGV[6])
local cancelled = redis.call('HEXISTS', KEYS[1], 'cancelled') == 1
if ARGV[5] == 'one' then
  if ARGV[4] == '1' then redis.call('ZREM', KEYS[2], ARGV[1]) end
  if ARGV[4] ~= '1' and not cancelled then redis.call('ZADD', KEYS[2], now + ARGV[7], ARGV[1]) end
end
return cancelled and 'cancelled' or 'told'
"""
)

# KEYS: orders for one. ARGV: this node, prefix of orders, ms until an order is lost, maximum of takeovers. Takes over one order.
_TAKE_OVER = Script(
    _NOW
    + """
for _, name in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, 20)) do
  local key = ARGV[2] .. name
  local job, owner, taken = unpack(redis.call('HMGET', key, 'job', 'owner', 'taken'))
  if not job or tonumber(taken or 0) >= tonumber(ARGV[4]) then
    redis.call('ZREM', KEYS[1], name)
  else
    redis.call('HINCRBY', key, 'taken', 1)
    redis.call('HSET', key, 'owner', ARGV[1], 'n:' .. ARGV[1], string.format('%.0f', now) .. '|')
    redis.call('ZADD', KEYS[1], now + ARGV[3], name)
    return {name, job, owner}
  end
end
return {}
"""
)

# KEYS: order, orders for one, events. ARGV: name, this node, maximum of events.
_CANCEL = Script("""
if redis.call('HEXISTS', KEYS[1], 'job') == 0 then return 0 end
redis.call('HSET', KEYS[1], 'cancelled', 1)
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[3], '*', 'kind', 'order_cancelled', 'node', ARGV[2], 'order', ARGV[1])
return 1
""")

# KEYS: order.
_READ = Script(_NOW + "return {now, redis.call('HGETALL', KEYS[1])}")
# KEYS: orders for one. ARGV: the last one of interest, prefix of orders. What is no order is left out.
_OPEN = Script(
    _NOW
    + """
local found = {now}
for _, name in ipairs(redis.call('ZRANGE', KEYS[1], 0, ARGV[1])) do
  local words = redis.pcall('HGETALL', ARGV[2] .. name)
  if not words.err then found[#found + 1] = {name, words} end
end
return found
"""
)


class Heard(Enum):
    """What has become of an order of which a node reports.

    `OTHER`: another node has taken it over.
    """

    TOLD = "told"
    CANCELLED = "cancelled"
    OTHER = "other"


@dataclass(frozen=True)
class SharedJob:
    """An order as it lies in Redis.

    Attributes:
        row: the job.
        age: seconds since it was given last.
    """

    name: str
    row: dict[str, Any]
    age: float


@dataclass(frozen=True)
class Report:
    """What a node has said of its part of an order.

    Attributes:
        age: seconds since.
        text: JSON; empty if the node was only told of the order.
    """

    age: float
    text: bytes


@dataclass(frozen=True)
class OrderRecord:
    """What Redis knows of an order.

    Attributes:
        owner: the node to which an order for one belongs.
        can_move: another node may still take it over.
        reports: by node.
    """

    job: SharedJob
    owner: str
    is_cancelled: bool
    can_move: bool
    reports: dict[str, Report]


class SharedOrders:
    """The orders of a cluster. Every method raises LinkDown.

    The `share` of an order is `all` or `one`; its `row` has at least `kind`, `images` and `platforms`.

    Args:
        me: the name of this node.

    Attributes:
        lost_after_s: how long after its last report a node's part of an order counts as lost.
    """

    def __init__(self, link: Link, keys: Keys, me: str) -> None:
        self.lost_after_s = _LOST_AFTER_S
        self._link = link
        self._keys = keys
        self._me = me

    @property
    def report_interval_s(self) -> float:
        """How often a node repeats its report of an order that has not ended, and looks for lost ones."""
        return self.lost_after_s / _REPORTS_BEFORE

    async def add(self, name: str, share: str, row: dict[str, Any]) -> str:
        """Share an order, and tell the nodes of it.

        Returns its name, or that of the same order that is not cancelled, and that no node has begun yet.
        """
        keys = self._keys
        words = (name, self._me, json.dumps(row), share, keys.order(""), _EXPIRY_S, _SAME_MS, self._lost_ms, MAX_EVENTS, TTL_S)
        found = await self._link.call(
            _ADD, [keys.order(name), self._same(row), keys.orders_for_one, keys.events, keys.nodes], *words
        )
        return str(found.decode())

    async def begin(self, name: str, share: str, row: dict[str, Any]) -> float | None:
        """Begin this node's part of an order: from now on the same order is another one.

        Returns the seconds since it was given last; None if it is cancelled, or belongs to another node. Redis may have lost it:
        then they are infinite.
        """
        age = await self._link.call(_BEGIN, [self._keys.order(name), self._same(row)], name, self._me, share)
        return None if age == -2 else float("inf") if age == -1 else age / 1000

    async def report(self, name: str, share: str, row: dict[str, Any], report: dict[str, Any], *, is_last: bool) -> Heard:
        """Say how far this node is with its part of an order."""
        keys = [self._keys.order(name), self._keys.orders_for_one]
        words = (name, self._me, json.dumps(report), int(is_last), share, _EXPIRY_S, self._lost_ms)
        answer = await self._link.call(_REPORT, keys, *words, "")
        if answer == b"unknown":
            answer = await self._link.call(_REPORT, keys, *words, json.dumps(row))
        return Heard(answer.decode())

    async def take_over(self) -> tuple[SharedJob, str] | None:
        """Take an order over whose node has not reported for too long; returns it with that node, None if there is none.

        It may be one of this node, which then has lost it: report first of all that it has.
        """
        words = (self._me, self._keys.order(""), self._lost_ms, _MAX_TAKEOVERS)
        found = await self._link.call(_TAKE_OVER, [self._keys.orders_for_one], *words)
        if not found:
            return None
        name, job, owner = found
        try:
            row, former = json.loads(job), owner.decode(errors="replace")
        except (ValueError, AttributeError, RecursionError):
            # One that cannot be read is left to a node of another version.
            return None
        return (SharedJob(name.decode(errors="replace"), row, 0.0), former) if isinstance(row, dict) else None

    async def cancel(self, name: str) -> bool:
        """Have all nodes cancel an order; False if Redis does not know it."""
        keys = [self._keys.order(name), self._keys.orders_for_one, self._keys.events]
        return bool(await self._link.call(_CANCEL, keys, name, self._me, MAX_EVENTS))

    async def read(self, name: str) -> OrderRecord | None:
        """Return what is known of an order; None if it is not, or not in a form of this version."""
        try:
            now, words = await self._link.call(_READ, [self._keys.order(name)])
        except LinkRefused:
            # The key has another type. Who asks again would hold up the events behind this order.
            return None
        return _record(name, now, words)

    async def open_for_one(self) -> list[OrderRecord]:
        """Return the orders for one that have not ended, as far as they can be read; at most a hundred."""
        now, *found = await self._link.call(_OPEN, [self._keys.orders_for_one], _MAX_OPEN - 1, self._keys.order(""))
        records = (_record(name.decode(errors="replace"), now, words) for name, words in found)
        return [record for record in records if record is not None]

    @property
    def _lost_ms(self) -> int:
        return round(self.lost_after_s * 1000)

    def _same(self, row: dict[str, Any]) -> str:
        """The key of orders for the same images and platforms."""
        wanted = [row["kind"], sorted(set(row["images"])), sorted(set(row["platforms"]))]
        return self._keys.same_order(hashlib.sha256(json.dumps(wanted).encode()).hexdigest())


def _record(name: str, now_ms: int, words: list[bytes]) -> OrderRecord | None:
    """Return an order from the fields and values of its hash; None if it is none of this version."""
    fields = {key.decode(errors="replace"): value for key, value in zip(words[::2], words[1::2], strict=True)}
    try:
        row, age = json.loads(fields["job"]), (now_ms - int(fields["asked"])) / 1000
        reports = {key[2:]: _report(value, now_ms) for key, value in fields.items() if key.startswith("n:")}
        can_move = int(fields.get("taken", 0)) < _MAX_TAKEOVERS
        owner = fields["owner"].decode(errors="replace")
    except (KeyError, ValueError, OverflowError, RecursionError):
        return None
    if not isinstance(row, dict):
        return None
    job = SharedJob(name, row, max(0.0, age))
    return OrderRecord(job, owner, "cancelled" in fields, can_move, reports)


def _report(value: bytes, now_ms: int) -> Report:
    when, _, text = value.partition(b"|")
    return Report(max(0.0, (now_ms - int(when)) / 1000), text)
