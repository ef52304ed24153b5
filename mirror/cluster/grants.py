"""Grants that all nodes share: upstream's answer to one of them counts for all, in the same scope and repository."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from mirror.cluster.keys import Keys
from mirror.cluster.link import Link, LinkDown, Script
from mirror.core.bounded_cache import BoundedCache
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.storage.rows import Kind

_TTL_MS = 7 * 86_400_000
_MAX_UNTOLD = 10_000

_GET = Script("return redis.call('GET', KEYS[1])")
_SET = Script("return redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])")
_DELETE = Script("return redis.call('DEL', KEYS[1])")

Record = Callable[[Kind, Repository, Digest, int], None]
"""Records a grant on this node: kind, repository, digest, bytes."""


class Grants:
    """Reads and writes grants in Redis. Without Redis each node asks upstream, as it does by itself.

    Args:
        record: records on this node what another one was granted.
    """

    def __init__(self, link: Link, keys: Keys, record: Record) -> None:
        self._link = link
        self._keys = keys
        self._record = record
        # The keys of revoked grants that Redis may still have.
        self._untold: BoundedCache[str, bool] = BoundedCache(_MAX_UNTOLD)

    def scope(self, repository: Repository) -> str:
        """The scope of the registry of a repository."""
        return self._keys.scope(repository.registry)

    async def share(self, kind: Kind, repository: Repository, digest: Digest, size: int) -> None:
        """Write a grant of upstream, before other nodes see the bytes that came with it."""
        key = self._keys.grant(kind, repository, digest)
        self._untold.pop(key)
        with contextlib.suppress(LinkDown):
            await self._link.call(_SET, [key], size, _TTL_MS)

    async def adopt(self, kind: Kind, repository: Repository, digest: Digest, size: int) -> bool:
        """Record the grant of another node for content of `size` bytes; False if there is none."""
        key = self._keys.grant(kind, repository, digest)
        if key in self._untold:
            await self.revoke(kind, repository, digest)
            return False
        with contextlib.suppress(LinkDown):
            found = await self._link.call(_GET, [key])
            # Upstream may have refused it meanwhile.
            if found is not None and found == str(size).encode() and key not in self._untold:
                self._record(kind, repository, digest, size)
                return True
        return False

    async def revoke(self, kind: Kind, repository: Repository, digest: Digest) -> None:
        """Delete a grant: upstream refuses the content now. If Redis does not take that, this process adopts it no more."""
        key = self._keys.grant(kind, repository, digest)
        self._untold.put(key, True)
        with contextlib.suppress(LinkDown):
            await self._link.call(_DELETE, [key])
            self._untold.pop(key)
