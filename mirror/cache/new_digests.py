"""Refuses manifests that were never seen here, by their digest, until they have cooled down (`cooldown_new: refuse`)."""

from __future__ import annotations

import itertools
from typing import Final

from mirror.cache.content import CachedContent
from mirror.cache.context import Context
from mirror.cache.manifest_by_digest import ManifestByDigest
from mirror.cache.sights import Sights
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.core.signatures import subject_of
from mirror.core.units import about
from mirror.errors import TooYoung
from mirror.storage.index import ReadCheck

# Indexes nest two deep in practice.
_MAX_DEPTH: Final = 4
# Bounds the search for one known manifest that leads to a digest.
_MAX_LOOKUPS: Final = 1000


class DigestAges:
    """Looks up which manifests may be pulled by their digest. Sends no requests. `admits` belongs in a thread."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def admits(self, repository: Repository, digest: Digest) -> bool:
        """Whether a manifest may be pulled: it has cooled down, is led to by what may be, or was held before there was a rule.

        Raises:
            StorageError: nobody knows for now since when it has been held.
        """
        cooldown = self._context.policies.cooldown_of_new_digests(repository)
        return not cooldown or self._leads_from_known(repository, digest, cooldown)

    def refusal(self, repository: Repository, digest: Digest) -> TooYoung | None:
        """The error for a manifest that may not be pulled yet; None if it was never seen."""
        context, sight = self._context, self._context.store.index.holds.sight(repository, digest)
        if sight is None:
            return None
        until = sight.first + context.policies.cooldown_of_new_digests(repository)
        return too_young(f"{repository}@{digest}", until, context.clock())

    def _leads_from_known(self, repository: Repository, digest: Digest, cooldown: float) -> bool:
        """Whether a manifest, or one that leads to it, is known; those that are nearest are looked at first."""
        reliable, parts = ReadCheck(self._context.store.index), self._context.store.index.parts
        seen, level = {digest}, [digest]
        for _ in range(_MAX_DEPTH + 1):
            if any(self._is_known(repository, one, cooldown, reliable) for one in level):
                return True
            parents = itertools.chain.from_iterable(parts.naming("manifest", repository, one) for one in level)
            level = list(itertools.islice(dict.fromkeys(one for one in parents if one not in seen), _MAX_LOOKUPS - len(seen)))
            seen.update(level)
        return False

    def _is_known(self, repository: Repository, digest: Digest, cooldown: float, reliable: ReadCheck) -> bool:
        index = self._context.store.index
        sight = index.holds.sight(repository, digest)
        if sight is not None and (sight.is_released or self._context.clock() - sight.first >= cooldown):
            return True
        # A tag of signatures is followed at once, and may name anything.
        if any(subject_of(tag) is None for tag in index.tags.naming(repository, digest)):
            return True
        if sight is None and index.manifests.get(repository, digest) is not None:
            reliable.check(f"since when {repository} has {digest}")
            return True
        return False


class NewDigests:
    """Refuses pulls of manifests by digest."""

    def __init__(self, context: Context, content: CachedContent, by_digest: ManifestByDigest, sights: Sights) -> None:
        self._sights = sights
        self._context = context
        self._content = content
        self._by_digest = by_digest
        self._ages = DigestAges(context)

    async def check(self, repository: Repository, digest: Digest) -> None:
        """Return if a manifest may be pulled; upstream is asked by HEAD for one that was never seen, which begins its clock.

        Raises:
            TooYoung: it has not been known here for long enough.
            UpstreamRefusal, UpstreamError: it was never seen, and upstream does not have it or cannot be asked.
            StorageError: nobody knows for now since when it has been known.
        """
        if not self._context.policies.cooldown_of_new_digests(repository):
            return
        if await self._context.in_thread(self._ages.admits, repository, digest):
            return
        # The manifest that leads to it may have been stored a moment ago.
        await self._context.access.wait_written()
        if await self._context.in_thread(self._ages.admits, repository, digest):
            return
        sight = self._context.store.index.holds.sight(repository, digest)
        if sight is None:
            self._content.raise_if_negative("manifest", repository, digest)
            await self._by_digest.head_upstream(repository, digest)
        elif self._context.cluster is not None:
            await self._sights.shared(repository, digest, sight)
        if await self._context.in_thread(self._ages.admits, repository, digest):
            return
        cooldown, now = self._context.policies.cooldown_of_new_digests(repository), self._context.clock()
        raise self._ages.refusal(repository, digest) or too_young(f"{repository}@{digest}", now + cooldown, now)


def too_young(what: str, until: float, now: float) -> TooYoung:
    """Return the error for content that may be pulled from a time on."""
    rule = f"cooldown_new: it has not been known here for long enough; {about(until - now)} are left"
    return TooYoung(f"{what} may not be pulled yet", rule, until)
