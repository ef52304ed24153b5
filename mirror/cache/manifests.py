"""Manifests by tag and by digest, with a cache of answers in memory."""

from __future__ import annotations

import math
from dataclasses import replace

from mirror.cache.answers import ManifestAnswer
from mirror.cache.context import Context
from mirror.cache.generation_cache import GenerationCache
from mirror.cache.last_answers import LastAnswer
from mirror.cache.manifest_by_digest import ManifestByDigest
from mirror.cache.manifest_by_tag import ManifestByTag
from mirror.cache.manifest_gates import ManifestGates
from mirror.cache.prefetch import Prefetch
from mirror.core.digest import Digest
from mirror.core.names import Reference, Repository, Tag
from mirror.core.outcome import Outcome
from mirror.core.staleness import said
from mirror.errors import MirrorError, PolicyDenied, UpstreamRefusal


class Manifests:
    """Answers for manifests."""

    def __init__(
        self,
        context: Context,
        by_digest: ManifestByDigest,
        by_tag: ManifestByTag,
        gates: ManifestGates,
        prefetch: Prefetch,
    ) -> None:
        self._context = context
        self._gates = gates
        self._answers: GenerationCache[ManifestAnswer] = GenerationCache(context.store.generation)
        self._by_digest = by_digest
        self._by_tag = by_tag
        self._prefetch = prefetch

    def cached(self, repository: Repository, reference: Reference) -> ManifestAnswer | None:
        """A HIT from memory, or None."""
        now = self._context.clock()
        answer = self._answers.get((repository, reference), now)
        if answer is not None:
            self._context.usage.note_manifest(repository, reference, answer.digest, now)
        return answer

    async def get(self, repository: Repository, reference: Reference, *, head: bool) -> ManifestAnswer:
        """The manifest that a reference names.

        Args:
            head: the client wants only the headers, so upstream gets a HEAD at most.

        Raises:
            UpstreamRefusal: upstream does not have it, or denies it.
            UpstreamError: upstream cannot be asked, and no stale answer may be served.
        """
        cached = self.cached(repository, reference)
        if cached is not None:
            return cached
        generation, asked = self._answers.generation(), self._context.clock()
        answer, expires = await self._find(repository, reference, head=head)
        self._note(repository, reference, answer)
        if answer.outcome is Outcome.MISS:
            # The client does not wait for it.
            self._context.store.threads.note.submit(self._note_miss, repository, reference, answer.digest, asked)
        if not head:
            await self._prefetch.on_served(repository, answer)
        # A HIT from memory skips prefetch, so a manifest enters it only after its first GET.
        transient = answer.outcome in (Outcome.STALE, Outcome.BYPASS) or self._prefetch.is_pending(repository, answer.digest)
        if answer.raw is not None and not transient:
            hit = replace(answer, outcome=Outcome.HIT)
            self._answers.put((repository, reference), hit, len(answer.raw), expires, generation)
        return answer

    async def find(self, repository: Repository, reference: Reference, *, head: bool) -> tuple[ManifestAnswer, float]:
        """The manifest that a pull would get now, and when it expires; counts as no pull. Raises like `get`."""
        if isinstance(reference, Digest):
            await self._gates.before_fetch(repository, reference)
            answer, expires = await self._by_digest.get(repository, reference, head=head), math.inf
        else:
            answer, expires = await self._by_tag.get(repository, reference, head=head)
        await self._gates.before_answer(repository, reference, answer.digest)
        return answer, expires

    async def _find(self, repository: Repository, reference: Reference, *, head: bool) -> tuple[ManifestAnswer, float]:
        """The manifest, and when it expires; notes an error."""
        try:
            return await self.find(repository, reference, head=head)
        except MirrorError as error:
            answer = LastAnswer(None, self._context.clock(), str(error))
            self._context.last_answers.note(repository, reference, answer)
            # A refusal is an answer of upstream.
            if not isinstance(error, UpstreamRefusal | PolicyDenied):
                self._context.last_answers.note_trouble(repository, reference, answer)
            raise

    def _note(self, repository: Repository, reference: Reference, answer: ManifestAnswer) -> None:
        context, now = self._context, self._context.clock()
        context.usage.note_manifest(repository, reference, answer.digest, now)
        cause = None if answer.reason is None else said(answer.reason)
        last = LastAnswer(answer.outcome, now, cause)
        context.last_answers.note(repository, reference, last)
        if answer.outcome is Outcome.STALE:
            context.last_answers.note_trouble(repository, reference, last)

    def _note_miss(self, repository: Repository, reference: Reference, digest: Digest, asked: float) -> None:
        """Record why a manifest was not held; in a thread, after the record of its tag."""
        index = self._context.store.index
        record = index.tags.get(repository, reference) if isinstance(reference, Tag) else None
        is_known = isinstance(reference, Digest) or (record is not None and record.changed < asked)
        cause = index.history.cause(repository, reference, digest, asked, is_known=is_known)
        index.history.note_miss(repository, reference, cause)

    async def close(self) -> None:
        """Cancel the requests to upstream."""
        await self._by_tag.close()
        await self._by_digest.close()
