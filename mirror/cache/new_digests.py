"""Refuses manifests that were never seen here, by their digest, until they have cooled down (`cooldown_new: refuse`)."""

from __future__ import annotations

from typing import Final

from mirror.cache.content import CachedContent
from mirror.cache.context import Context
from mirror.cache.manifest_by_digest import ManifestByDigest
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.core.units import about
from mirror.errors import TooYoung

# Indexes nest two deep in practice; a manifest that more indexes name is looked for in these.
_MAX_DEPTH: Final = 4
_MAX_PARENTS: Final = 20


class NewDigests:
    """Decides which manifests may be pulled by their digest, as far as cool-downs matter."""

    def __init__(self, context: Context, content: CachedContent, by_digest: ManifestByDigest) -> None:
        self._context = context
        self._content = content
        self._by_digest = by_digest

    async def check(self, repository: Repository, digest: Digest) -> None:
        """Return if a manifest may be pulled; upstream is asked by HEAD for one that was never seen, which begins its clock.

        Raises:
            TooYoung: it has not been known here for long enough.
            UpstreamRefusal, UpstreamError: it was never seen, and upstream does not have it or cannot be asked.
        """
        context, cooldown = self._context, self._context.policies.cooldown_of_new_digests(repository)
        if not cooldown or self._is_known(repository, digest, cooldown):
            return
        # The manifest that leads to it may have been stored a moment ago.
        await context.access.wait_written()
        if self._is_known(repository, digest, cooldown):
            return
        holds = context.store.index.holds
        if holds.sight(repository, digest) is None:
            self._content.raise_if_negative("manifest", repository, digest)
            await self._by_digest.head_upstream(repository, digest)
        sight = holds.sight(repository, digest)
        first = context.clock() if sight is None else sight.first
        raise too_young(f"{repository}@{digest}", first + cooldown, context.clock())

    def refused_until(self, repository: Repository, digest: Digest) -> float | None:
        """When a manifest that was seen may be pulled by its digest, in seconds since the epoch; None if it may be, or is new."""
        cooldown = self._context.policies.cooldown_of_new_digests(repository)
        sight = self._context.store.index.holds.sight(repository, digest) if cooldown else None
        return None if sight is None or self._is_known(repository, digest, cooldown) else sight.first + cooldown

    def _is_known(self, repository: Repository, digest: Digest, cooldown: float, depth: int = 0) -> bool:
        """Whether a manifest has cooled down, or a tag or such a manifest leads to it, or it was held before there was a rule."""
        index = self._context.store.index
        sight = index.holds.sight(repository, digest)
        if sight is not None and (sight.is_released or self._context.clock() - sight.first >= cooldown):
            return True
        if index.tags.naming(repository, digest):
            return True
        if sight is None and index.manifests.get(repository, digest) is not None:
            return True
        parents = index.parts.naming("manifest", repository, digest)[:_MAX_PARENTS] if depth < _MAX_DEPTH else []
        return any(self._is_known(repository, parent, cooldown, depth + 1) for parent in parents)


def too_young(what: str, until: float, now: float) -> TooYoung:
    """Return the error for content that may be pulled from a time on."""
    rule = f"cooldown_new: it has not been known here for long enough; {about(until - now)} are left"
    return TooYoung(f"{what} may not be pulled yet", rule, until)
