"""Facts about the objects of a bucket that the nodes of a cluster share. Without Redis each node asks the bucket."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

from mirror.cluster.keys import Keys
from mirror.cluster.link import Link, LinkDown, Script
from mirror.core.digest import Digest
from mirror.objects.facts import Claim

_STORED_MS = 86_400_000
_CLAIM_MS, _MS_PER_MIB = 60_000, 200
_TOTAL_S = 3600
# Of one call, so that it does not hold up the others.
_BATCH = 500
# Claims that were not ended, and digests that nobody has used for long, are dropped.
_MAX_CLAIMS, _CLAIM_KEPT_MS, _USED_KEPT_S = 100_000, 3_600_000, 180 * 86_400

_NOW = "local time = redis.call('TIME'); local now = tonumber(time[1]) + tonumber(time[2]) / 1e6\n"

# KEYS: used. ARGV: age at which a use is dropped, then pairs of a digest and the age of its use.
_NOTE_USES = Script(
    _NOW
    + """
for i = 2, #ARGV, 2 do
  local when, known = now - ARGV[i + 1], redis.call('ZSCORE', KEYS[1], ARGV[i])
  if not known or tonumber(known) < when then redis.call('ZADD', KEYS[1], when, ARGV[i]) end
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[1])
"""
)
# KEYS: used. ARGV: digests. Returns ages, as text, or nothing for each.
_USES = Script(
    _NOW
    + """
local found = {}
for i, digest in ipairs(ARGV) do
  local when = redis.call('ZSCORE', KEYS[1], digest)
  found[i] = when and tostring(now - when) or ''
end
return found
"""
)
# KEYS: stored, used. ARGV: digest.
_PROMISE = Script(
    _NOW
    + """
local size = redis.call('GET', KEYS[1])
if size then redis.call('ZADD', KEYS[2], now, ARGV[1]) end
return size
"""
)
_DELETE = Script("return redis.call('DEL', unpack(KEYS))")
_PUT = Script("redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])")
_GET = Script("return redis.call('GET', KEYS[1])")
# KEYS: stored, todo, used. ARGV: digest, size, TTL of the claim, the most claims, age at which one is dropped.
_CLAIM = Script(
    _NOW
    + """
redis.call('ZADD', KEYS[3], now, ARGV[1])
if redis.call('GET', KEYS[1]) == ARGV[2] then return 2 end
local until_ = redis.call('ZSCORE', KEYS[2], ARGV[1])
if until_ and tonumber(until_) > now * 1000 then return 0 end
redis.call('ZADD', KEYS[2], now * 1000 + ARGV[3], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', now * 1000 - ARGV[5])
redis.call('ZREMRANGEBYRANK', KEYS[2], 0, -1 - ARGV[4])
return 1
"""
)
# KEYS: stored, todo, used. ARGV: digest, the age from which on a use saves it, TTL of the claim.
_CONDEMN = Script(
    _NOW
    + """
local when, until_ = redis.call('ZSCORE', KEYS[3], ARGV[1]), redis.call('ZSCORE', KEYS[2], ARGV[1])
if when and tonumber(when) > now - ARGV[2] then return 0 end
if until_ and tonumber(until_) > now * 1000 then return 0 end
redis.call('DEL', KEYS[1])
redis.call('ZADD', KEYS[2], now * 1000 + ARGV[3], ARGV[1])
return 1
"""
)
# KEYS: stored, todo. ARGV: digest, size or nothing, TTL.
_RELEASE = Script("""
redis.call('ZREM', KEYS[2], ARGV[1])
if ARGV[2] ~= '' then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
""")
_FORGET = Script("redis.call('ZREM', KEYS[1], ARGV[1])")


class SharedFacts:
    """See `mirror.objects.facts.ObjectFacts`. Ages are sent instead of times: the clock of Redis counts.

    Args:
        is_follower: whether the bytes of a blob came from another node.
    """

    def __init__(self, link: Link, keys: Keys, is_follower: Callable[[Digest], bool]) -> None:
        self._link = link
        self._keys = keys
        self.is_follower = is_follower

    async def note_uses(self, uses: Mapping[Digest, float]) -> None:
        """See `ObjectFacts.note_uses`."""
        now, pairs = time.time(), list(uses.items())
        with contextlib.suppress(LinkDown):
            for start in range(0, len(pairs), _BATCH):
                words = [word for digest, when in pairs[start : start + _BATCH] for word in (str(digest), f"{now - when:.3f}")]
                await self._link.call(_NOTE_USES, [self._keys.used], _USED_KEPT_S, *words)

    async def uses(self, digests: Sequence[Digest]) -> list[float]:
        """See `ObjectFacts.uses`. Raises LinkDown."""
        found: list[float] = []
        for start in range(0, len(digests), _BATCH):
            names = [str(digest) for digest in digests[start : start + _BATCH]]
            ages = await self._link.call(_USES, [self._keys.used], *names)
            now = time.time()
            found += [now - float(age) if age else 0.0 for age in ages]
        return found

    async def promise(self, digest: Digest) -> int | None:
        """See `ObjectFacts.promise`."""
        with contextlib.suppress(LinkDown, ValueError):
            size = await self._link.call(_PROMISE, [self._keys.stored(digest), self._keys.used], str(digest))
            return None if size is None else int(size)
        return None

    async def withdraw(self, digests: Sequence[Digest]) -> None:
        """See `ObjectFacts.withdraw`."""
        with contextlib.suppress(LinkDown):
            for start in range(0, len(digests), _BATCH):
                await self._link.call(_DELETE, [self._keys.stored(digest) for digest in digests[start : start + _BATCH]])

    async def note_present(self, digest: Digest, size: int) -> None:
        """See `ObjectFacts.note_present`."""
        with contextlib.suppress(LinkDown):
            await self._link.call(_PUT, [self._keys.stored(digest)], size, _STORED_MS)

    async def claim(self, digest: Digest, size: int) -> Claim:
        """See `ObjectFacts.claim`. Without Redis every node uploads what it owes, and finds what others have written."""
        limits = _CLAIM_MS + _MS_PER_MIB * (size >> 20), _MAX_CLAIMS, _CLAIM_KEPT_MS
        try:
            answer = await self._link.call(_CLAIM, self._of(digest), str(digest), size, *limits)
        except LinkDown:
            return Claim.MINE
        return (Claim.WAIT, Claim.MINE, Claim.STORED)[answer]

    async def condemn(self, digest: Digest, since: float) -> bool:
        """See `ObjectFacts.condemn`. Without Redis nobody knows who uses it, and nothing is deleted."""
        age = f"{time.time() - since:.3f}"
        try:
            return bool(await self._link.call(_CONDEMN, self._of(digest), str(digest), age, _CLAIM_MS))
        except LinkDown:
            return False

    async def release(self, digest: Digest, size: int | None) -> None:
        """See `ObjectFacts.release`."""
        keys = [self._keys.stored(digest), self._keys.todo]
        with contextlib.suppress(LinkDown):
            await self._link.call(_RELEASE, keys, str(digest), "" if size is None else size, _STORED_MS)

    async def forget(self, digest: Digest) -> None:
        """See `ObjectFacts.forget`."""
        with contextlib.suppress(LinkDown):
            await self._link.call(_FORGET, [self._keys.used], str(digest))

    async def share_total(self, size: int) -> None:
        """See `ObjectFacts.share_total`."""
        with contextlib.suppress(LinkDown):
            await self._link.call(_PUT, [self._keys.objects_size], size, _TOTAL_S * 1000)

    async def total(self) -> int | None:
        """See `ObjectFacts.total`."""
        with contextlib.suppress(LinkDown, ValueError):
            size = await self._link.call(_GET, [self._keys.objects_size])
            return None if size is None else int(size)
        return None

    def _of(self, digest: Digest) -> list[str]:
        return [self._keys.stored(digest), self._keys.todo, self._keys.used]
