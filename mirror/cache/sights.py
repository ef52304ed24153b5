"""Since when manifests have been known here: the clocks of cool-downs.

The time is this mirror's own, never a date that a publisher has written. Only repositories in which a tag may have a
cool-down are recorded.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from mirror.cache.context import Context
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.storage.holds import Sight

# Ages travel in milliseconds.
_PRECISION_S: Final = 0.01


class Sights:
    """Records and looks up first sights."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def note(self, repository: Repository, digest: Digest | None) -> None:
        """Record that upstream has just named or given a manifest in a repository."""
        if digest is not None and self._context.policies.has_cooldown(repository):
            await self.first(repository, digest)

    async def first(self, repository: Repository, digest: Digest) -> Sight:
        """The first sight of a manifest that upstream has in a repository; now, if it was never seen."""
        context, now = self._context, self._context.clock()
        known = context.store.index.holds.sight(repository, digest)
        if known is not None and known.first <= now:
            return known
        seen = await context.note(partial(self._see, repository, digest, now), late=Sight(now))
        return (await self.shared(repository, digest, seen))[0]

    async def shared(self, repository: Repository, digest: Digest, own: Sight) -> tuple[Sight, frozenset[str]]:
        """What all nodes know: the first sight, and the references for which an operator has released the manifest.

        Args:
            own: what this node knows, which is all without a cluster.
        """
        context, now = self._context, self._context.clock()
        found = None if context.cluster is None else await context.cluster.sights.see(repository, digest, now - own.first)
        if found is None:
            return own, frozenset()
        is_released = own.is_released or str(digest) in found.released
        sight = Sight(min(own.first, now - found.age), is_released)
        if is_released and not own.is_released:
            await context.note(partial(context.store.index.holds.release_digest, repository, digest), late=False)
        if sight.first < own.first - _PRECISION_S:
            await context.note(partial(context.store.index.holds.see, repository, digest, sight.first, now), late=sight)
        return sight, found.released

    def _see(self, repository: Repository, digest: Digest, now: float) -> Sight:
        index = self._context.store.index
        # What was held, or named by a tag, before there was a cool-down.
        records = (index.tags.get(repository, tag) for tag in index.tags.naming(repository, digest))
        times = [record.changed for record in records if record is not None]
        times += [index.manifests.written_at(repository, digest) or now]
        return index.holds.see(repository, digest, min((when for when in times if when <= now), default=now), now)
