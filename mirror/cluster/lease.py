"""Leases on blobs: the first node that asks fetches a blob, and the others learn from which nodes they get it.

A lease is a value in Redis that its owner renews. It only saves work: content is addressed by its digest and verified by each
node, so two owners cost traffic, never wrong bytes. A follower whose owner fails replaces the value if it is still the one that
the follower has seen, and so becomes the owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from dataclasses import dataclass

import structlog

from mirror.cluster.failures import decode_failure, encode_failure
from mirror.cluster.keys import Keys
from mirror.cluster.link import Link, LinkDown, Script
from mirror.core.digest import Digest
from mirror.download.downloads import Downloads
from mirror.errors import UpstreamError
from mirror.storage.blobs import BlobFiles

log = structlog.get_logger(__name__)

# An owner that has not renewed its lease for `_TTL_MS` has lost it.
_TTL_MS, _RENEW_S = 10_000, 3.0
_HELD_MS = 6 * 3_600_000
# How long other nodes repeat the failure of an owner instead of asking upstream.
_FAILED_MS = 5_000
_POLL_INTERVAL_S = 1.0

# KEYS: lease, askers. ARGV: this node, the value to replace, a token, whether it may own, fan-out, scope, TTLs.
# A value is STATE|TOKEN|NODE|REST. Number n in the list of askers streams from number (n - 1) / fan-out.
_ASK = Script("""
local value = redis.call('GET', KEYS[1])
local me, suspect, may_own = ARGV[1], ARGV[2], ARGV[4] == '1'
local state, node, rest, others = '', '', '', {}
if value then state, node, rest = string.match(value, '^(%a+)|[^|]*|([^|]*)|(.*)$') end
local mine = node == me
if value and value ~= suspect then
  if state == 'own' and mine then return {'owned', value} end
  if state == 'failed' and not mine and string.match(rest, '^([^|]*)') == ARGV[6] then return {'failed', rest} end
  if state == 'held' then
    for _, other in ipairs(redis.call('LRANGE', KEYS[2], -4, -1)) do
      if other ~= me then others[#others + 1] = other end
    end
  end
  if (state == 'own' or state == 'held') and not (mine and #others == 0) then
    local number = redis.call('LPOS', KEYS[2], me)
    if not number then
      number = redis.call('LLEN', KEYS[2])
      if may_own and number < 1024 then
        redis.call('RPUSH', KEYS[2], me)
        redis.call('PEXPIRE', KEYS[2], ARGV[8])
      end
    end
    local found = {'follow', value}
    while number > 0 do
      number = math.floor((number - 1) / tonumber(ARGV[5]))
      local parent = redis.call('LINDEX', KEYS[2], number)
      if parent and parent ~= me then found[#found + 1] = parent end
    end
    for _, other in ipairs(others) do found[#found + 1] = other end
    if not mine then found[#found + 1] = node end
    return found
  end
end
if not may_own then return {'alone'} end
local answer = {'own', 'own|' .. ARGV[3] .. '|' .. me .. '|'}
if value then
  for _, other in ipairs(redis.call('LRANGE', KEYS[2], 0, 7)) do
    if other ~= me and other ~= node then answer[#answer + 1] = other end
  end
end
redis.call('SET', KEYS[1], answer[2], 'PX', ARGV[7])
redis.call('DEL', KEYS[2])
redis.call('RPUSH', KEYS[2], me)
redis.call('PEXPIRE', KEYS[2], ARGV[8])
return answer
""")

# KEYS: lease, askers. ARGV: own value, TTL, this node, TTL of the list. Redis may have lost it: then it is written again.
_RENEW = Script("""
local value = redis.call('GET', KEYS[1])
if value and value ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if not value then
  redis.call('DEL', KEYS[2])
  redis.call('RPUSH', KEYS[2], ARGV[3])
  redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
return 1
""")

# KEYS: lease, askers. ARGV: own value, the value that replaces it (nothing: delete it), TTL.
_END = Script("""
local value = redis.call('GET', KEYS[1])
if value and value ~= ARGV[1] then return 0 end
if ARGV[2] == '' then return redis.call('DEL', KEYS[1], KEYS[2]) end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
""")


@dataclass(frozen=True, slots=True)
class Own:
    """This node fetches the blob from upstream.

    Attributes:
        is_new: this call has brought the lease.
        others: nodes that may have some of the blob, if the lease was taken over.
    """

    value: str
    is_new: bool = True
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Follow:
    """Other nodes have the blob, or receive it.

    Attributes:
        value: of the lease; `Leases.ask` replaces it if all of them fail.
        nodes: in the order in which to try them; the owner is the last one.
    """

    value: str
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Alone:
    """There is no lease: Redis cannot be asked, or nobody fetches the blob and this node cannot store it."""


Answer = Own | Follow | Alone


class Leases:
    """The leases of this process.

    Args:
        me: the name of this node.
        fan_out: the maximum of nodes that one node sends a blob to.

    Needs `run` to be running, which renews and ends leases.
    """

    def __init__(self, link: Link, keys: Keys, me: str, fan_out: int) -> None:
        self._link = link
        self._keys = keys
        self._me = me
        self._fan_out = fan_out
        self._owned: dict[Digest, _Lease] = {}

    async def ask(self, digest: Digest, suspect: str, scope: str, *, may_own: bool) -> Answer:
        """Return from where to get a blob.

        Args:
            suspect: a value whose nodes have failed, or nothing.
            scope: of the registry.
            may_own: whether other nodes could get the blob from this one.

        Raises:
            UpstreamError: another node has asked upstream a moment ago, and upstream failed.
        """
        keys = (self._keys.lease(digest), self._keys.askers(digest))
        token = os.urandom(8).hex()
        try:
            found = await self._link.call(
                _ASK, keys, self._me, suspect, token, int(may_own), self._fan_out, scope, _TTL_MS, _HELD_MS
            )
        except LinkDown:
            return Alone()
        kind, *rest = (text.decode(errors="replace") for text in found)
        if kind in ("own", "owned"):
            self._owned.setdefault(digest, _Lease(rest[0])).value = rest[0]
            return Own(rest[0], kind == "own", tuple(rest[1:]))
        if kind == "follow":
            return Follow(rest[0], tuple(dict.fromkeys(rest[1:])))
        if kind == "failed" and (failure := decode_failure(rest[0].partition("|")[2])) is not None:
            raise failure
        return Alone()

    def owns(self, digest: Digest) -> bool:
        """Whether this process has the lease of a blob, as far as it knows."""
        return digest in self._owned

    async def fail(self, digest: Digest, error: UpstreamError, scope: str) -> None:
        """End a lease because upstream failed; other nodes repeat the failure for a moment."""
        failure = encode_failure(error)
        value = "" if failure is None else f"failed|{os.urandom(8).hex()}|{self._me}|{scope}|{failure}"
        await self._end(digest, value, _FAILED_MS)

    async def release(self, digest: Digest) -> None:
        """End a lease; the next node that asks gets it."""
        await self._end(digest, "", 0)

    async def run(self, files: BlobFiles, downloads: Downloads) -> None:
        """Renew the leases of downloads that are under way, and end those of others; until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_POLL_INTERVAL_S)
            for digest, lease in list(self._owned.items()):
                if downloads.find(digest) is not None:
                    if loop.time() - lease.renewed >= _RENEW_S:
                        await self._renew(digest, lease)
                else:
                    await self._settle(files, digest)

    async def close(self, files: BlobFiles) -> None:
        """End all leases, whose downloads have been stopped: followers take over those of unfinished blobs at once."""
        for digest in list(self._owned):
            await self._settle(files, digest)

    async def _settle(self, files: BlobFiles, digest: Digest) -> None:
        """End a lease whose download has ended: other nodes find the blob here if it is held."""
        is_held = files.size(digest) is not None
        await self._end(digest, f"held|{os.urandom(8).hex()}|{self._me}|" if is_held else "", _HELD_MS)

    async def _renew(self, digest: Digest, lease: _Lease) -> None:
        keys = (self._keys.lease(digest), self._keys.askers(digest))
        try:
            renewed = await self._link.call(_RENEW, keys, lease.value, _TTL_MS, self._me, _HELD_MS)
        except LinkDown:
            return
        lease.renewed = asyncio.get_running_loop().time()
        if not renewed:
            # Another node has replaced it: streams from upstream end, and this node follows that one.
            self._owned.pop(digest, None)
            log.info("lease_lost", digest=str(digest), consequence="this node follows the one that has taken over")

    async def _end(self, digest: Digest, value: str, ttl_ms: int) -> None:
        lease = self._owned.pop(digest, None)
        if lease is None:
            return
        keys = (self._keys.lease(digest), self._keys.askers(digest))
        with contextlib.suppress(LinkDown):
            await self._link.call(_END, keys, lease.value, value, ttl_ms)


class _Lease:
    """A lease of this node.

    Attributes:
        value: in Redis.
        renewed: when, on the event loop's clock.
    """

    __slots__ = ("renewed", "value")

    def __init__(self, value: str) -> None:
        self.value = value
        self.renewed = asyncio.get_running_loop().time()
