"""What the nodes keep tags at whose moves may be held back, for a node whose store has no record of the tag.

A value is DIGEST|SIZE|TYPE. Each check writes one that is not there, so what Redis has lost comes back from any node.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Final

from mirror.cluster.keys import Keys
from mirror.cluster.link import Link, LinkDown, Script
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.freshness import TagRecord
from mirror.core.names import Repository, Tag

_TTL_MS: Final = 90 * 86_400_000

_FIND: Final = Script("return redis.call('GET', KEYS[1])")
# KEYS: kept tag. ARGV: value, TTL, whether it replaces another one.
_PUT: Final = Script("""
if ARGV[3] == '1' or redis.call('EXISTS', KEYS[1]) == 0 then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
""")


@dataclass(frozen=True, slots=True)
class KeptTag:
    """What a tag names on the nodes."""

    digest: Digest
    media_type: str
    size: int


class KeptTags:
    """The tags of a cluster. Without Redis nothing is known of them."""

    def __init__(self, link: Link, keys: Keys) -> None:
        self._link = link
        self._keys = keys

    async def find(self, repository: Repository, tag: Tag) -> KeptTag | None:
        """Return what a tag names on the nodes; None if it was never seen there, or Redis does not answer."""
        with contextlib.suppress(LinkDown, InvalidInput, ValueError):
            found = await self._link.call(_FIND, [self._keys.kept_tag(repository, tag)])
            if found is not None:
                digest, size, media_type = found.decode().split("|", 2)
                return KeptTag(Digest.parse(digest), media_type, int(size))
        return None

    async def put(self, repository: Repository, tag: Tag, record: TagRecord, *, replace: bool) -> None:
        """Write what a tag names on this node.

        Args:
            replace: the tag has moved; otherwise what another node has written stays.
        """
        key, value = self._keys.kept_tag(repository, tag), f"{record.digest}|{record.size}|{record.media_type}"
        with contextlib.suppress(LinkDown):
            await self._link.call(_PUT, [key], value, _TTL_MS, int(replace))
