"""Manifests: by digest for ever, by tag as fresh as the policy wants, and stale rather than not at all."""

from __future__ import annotations

from dataclasses import replace

from mirror.cache.answers import ManifestAnswer
from mirror.cache.context import Context
from mirror.cache.manifest_by_digest import ManifestByDigest
from mirror.cache.manifest_by_tag import ManifestByTag
from mirror.cache.manifest_cache import Memory
from mirror.cache.prefetch import Prefetch
from mirror.core.digest import Digest
from mirror.core.names import Reference, Repository
from mirror.core.outcome import Outcome


class Manifests:
    """Answers for manifests."""

    def __init__(self, context: Context, by_digest: ManifestByDigest, by_tag: ManifestByTag, prefetch: Prefetch) -> None:
        self._context = context
        self._memory: Memory[ManifestAnswer] = Memory(context.store.generation)
        self._by_digest = by_digest
        self._by_tag = by_tag
        self._prefetch = prefetch

    def remembered(self, repository: Repository, reference: Reference) -> ManifestAnswer | None:
        """A HIT that needs no look at disk or index, or None."""
        now = self._context.clock()
        answer = self._memory.get((repository, reference), now)
        if answer is not None:
            self._context.usage.manifest(repository, reference, answer.digest, now)
        return answer

    async def get(self, repository: Repository, reference: Reference, *, head: bool) -> ManifestAnswer:
        """The manifest that a reference names.

        Args:
            head: only the headers are wanted; upstream is then asked for no more than them, if at all.

        Raises:
            UpstreamRefusal: there is none, by upstream's own word.
            UpstreamError: upstream could not be asked, and nothing that could be served instead is held.
        """
        remembered = self.remembered(repository, reference)
        if remembered is not None:
            return remembered
        generation = self._memory.generation()
        if isinstance(reference, Digest):
            answer, good_until = await self._by_digest.get(repository, reference, head=head), float("inf")
        else:
            answer, good_until = await self._by_tag.get(repository, reference, head=head)
        self._context.usage.manifest(repository, reference, answer.digest, self._context.clock())
        if not head:
            await self._prefetch.on_served(repository, answer)
        # What is remembered is not looked at again, so a manifest waits for that until its first GET has been seen.
        fleeting = answer.outcome in (Outcome.STALE, Outcome.BYPASS) or self._prefetch.is_pending(repository, answer.digest)
        if answer.raw is not None and not fleeting:
            hit = replace(answer, outcome=Outcome.HIT)
            self._memory.put((repository, reference), hit, len(answer.raw), good_until, generation)
        return answer

    async def close(self) -> None:
        """Stop asking upstream."""
        await self._by_tag.close()
        await self._by_digest.close()
