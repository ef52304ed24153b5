"""First sights of manifests that all nodes share, so that a cool-down has one clock, and releases of what is held back.

A value is FIRST|RELEASES: when the first node saw the manifest, by Redis's clock, and REFERENCE@TIME for each tag for which an
operator has released it, and for the digest itself. The release of a tag lets one move through, so it counts for a day; that of a
digest stays. A node states and learns ages, so no difference between clocks matters.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any, Final

from mirror.cluster.keys import Keys
from mirror.cluster.link import Link, LinkDown, Script
from mirror.core.digest import Digest
from mirror.core.names import Reference, Repository

_TTL_MS: Final = 90 * 86_400_000
# Nodes that have not checked the tag by then hold the move back, as they do with one that comes later.
_RELEASED_MS: Final = 86_400_000
# Of one manifest, in bytes; a release beyond it counts on its own node only.
_MAX_VALUE: Final = 16 << 10

# KEYS: sight. ARGV: age of this node's own sight, TTL, reference to release or nothing, maximum length, how long the release of
# a tag counts. A digest has a colon, a tag has none.
_SEE: Final = Script("""
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local value, first = redis.call('GET', KEYS[1]), now - tonumber(ARGV[1])
local kept, released = ',', {}
local function keep(reference, time)
  kept = kept .. reference .. '@' .. time .. ','
  released[#released + 1] = reference
end
if value then
  local known, releases = string.match(value, '^(%d+)|(.*)$')
  if known then
    first = math.min(first, tonumber(known))
    for reference, time in string.gmatch(releases, '([^,@]+)@(%d+)') do
      local counts = string.find(reference, ':', 1, true) or now - tonumber(time) < tonumber(ARGV[5])
      if counts and reference ~= ARGV[3] then keep(reference, time) end
    end
  end
end
if ARGV[3] ~= '' and #kept < tonumber(ARGV[4]) then keep(ARGV[3], string.format('%.0f', now)) end
redis.call('SET', KEYS[1], string.format('%.0f', first) .. '|' .. kept, 'PX', ARGV[2])
return {now - first, released}
""")


@dataclass(frozen=True, slots=True)
class SharedSight:
    """What the nodes know of a manifest.

    Attributes:
        age: seconds since the first node saw it.
        released: the tags for which it was released of late, and the digest itself if that was, as text.
    """

    age: float
    released: frozenset[str]


class SharedSights:
    """The sights of a cluster. Without Redis each node goes by its own."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys

    async def see(self, repository: Repository, digest: Digest, age_s: float) -> SharedSight | None:
        """State that this node saw a manifest `age_s` seconds ago, and return what all know; None without Redis."""
        return await self._call(repository, digest, age_s, "")

    async def release(self, repository: Repository, digest: Digest, reference: Reference) -> bool:
        """Release a manifest for a tag, or by its digest, on all nodes; False without Redis."""
        return await self._call(repository, digest, 0.0, str(reference)) is not None

    async def _call(self, repository: Repository, digest: Digest, age_s: float, reference: str) -> SharedSight | None:
        key, age_ms = self._keys.sight(repository, digest), max(0, round(age_s * 1000))
        with contextlib.suppress(LinkDown):
            return _parsed(await self._link.call(_SEE, [key], age_ms, _TTL_MS, reference, _MAX_VALUE, _RELEASED_MS))
        return None


def _parsed(found: Any) -> SharedSight:
    age, released = found
    return SharedSight(max(0.0, int(age) / 1000), frozenset(reference.decode() for reference in released))
