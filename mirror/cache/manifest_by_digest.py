"""Manifests by digest: held for ever, fetched once."""

from __future__ import annotations

from dataclasses import replace

from mirror.aio import SingleFlight
from mirror.cache.access_index import UNKNOWN_SIZE
from mirror.cache.answers import ManifestAnswer
from mirror.cache.content import CachedContent
from mirror.cache.context import Context
from mirror.cache.prefetch import Prefetch
from mirror.core.digest import Digest
from mirror.core.manifest import ManifestKind
from mirror.core.media import INDEX_TYPES, MANIFEST_TYPES
from mirror.core.names import Reference, Repository, Tag
from mirror.core.outcome import Outcome
from mirror.errors import AccessDenied, NotFound, UpstreamRefusal
from mirror.upstream.flights import GuardedSingleFlight
from mirror.upstream.registry import ManifestHead


class ManifestByDigest:
    """Answers for digests, and fetches manifests for everybody."""

    def __init__(self, context: Context, content: CachedContent, prefetch: Prefetch) -> None:
        self._context = context
        self._content = content
        self._prefetch = prefetch
        self._fetches: GuardedSingleFlight[ManifestAnswer] = GuardedSingleFlight(context.in_use)
        # No failure is remembered: where a right is not known, the next question counts.
        self._questions: SingleFlight[ManifestHead] = SingleFlight(context.in_use)

    async def get(self, repository: Repository, digest: Digest, *, head: bool) -> ManifestAnswer:
        """The manifest with a digest; raises like `Manifests.get`."""
        found = await self._found(repository, digest)
        if found is not None:
            return found
        if head:
            answer = await self._headers_only(repository, digest)
            if answer is not None:
                return answer
        answer, joined = await self._fetches.run((repository, digest), lambda: self._fetch_once(repository, digest))
        return replace(answer, outcome=Outcome.JOINED) if joined else answer

    async def held(self, repository: Repository, digest: Digest) -> ManifestAnswer | None:
        """The manifest from disk, if the repository is known to hold it."""
        if not self._content.is_authorized("manifest", repository, digest):
            return None
        held = await self._content.manifest(repository, digest)
        if held is None:
            return None
        await self._content.record_held(repository, held)
        return ManifestAnswer(digest, held.media_type, len(held.raw), held.raw, Outcome.HIT)

    async def asked(self, repository: Repository, reference: Reference) -> ManifestHead:
        """What upstream's HEAD tells of a manifest; its no is remembered, and so is what it grants."""
        registry, asked = self._context.registry(repository), self._context.clock()
        try:
            head = await registry.head_manifest(repository.path, reference)
        except UpstreamRefusal as error:
            await self._remember_no(repository, reference, error, asked)
            raise
        self._record_grant(repository, reference, head)
        return head

    def _record_grant(self, repository: Repository, reference: Reference, head: ManifestHead) -> None:
        """Record what a HEAD has granted: nothing if it was not about the reference, or about no manifest, as a portal's page."""
        granted = head.digest
        if isinstance(reference, Digest):
            tells_nothing = head.digest is None and head.media_type not in MANIFEST_TYPES | INDEX_TYPES
            granted = None if tells_nothing or head.digest not in (reference, None) else reference
        if granted is not None:
            size = UNKNOWN_SIZE if head.size is None else head.size
            self._context.access.record_grant("manifest", repository, granted, size)

    async def fetch(self, repository: Repository, reference: Reference) -> ManifestAnswer:
        """Get a manifest from upstream and store it; schema 1 and what the store cannot take are passed through."""
        registry, asked = self._context.registry(repository), self._context.clock()
        try:
            manifest = await registry.manifest(repository.path, reference)
        except UpstreamRefusal as error:
            await self._remember_no(repository, reference, error, asked)
            raise
        answer = ManifestAnswer(manifest.digest, manifest.media_type, len(manifest.raw), manifest.raw, Outcome.MISS)
        if manifest.kind is ManifestKind.SCHEMA1 or not await self._content.keep(repository, manifest):
            return replace(answer, outcome=Outcome.BYPASS)
        self._prefetch.fetched(repository, manifest)
        return answer

    async def _fetch_once(self, repository: Repository, digest: Digest) -> ManifestAnswer:
        """What another process has fetched meanwhile, or else fetch it: however many processes, it costs one pull."""
        async with self._context.store.turns.turn(digest):
            found = await self._found(repository, digest)
            return replace(found, outcome=Outcome.JOINED) if found is not None else await self.fetch(repository, digest)

    async def _found(self, repository: Repository, digest: Digest) -> ManifestAnswer | None:
        """What can be answered without fetching it, None if nothing; raises upstream's no, if it has lately said so.

        What is on disk for another repository: upstream is asked whether this one has it, and nothing is fetched.
        """
        held = await self.held(repository, digest)
        if held is not None:
            return held
        self._content.raise_if_negative("manifest", repository, digest)
        if await self._content.manifest(repository, digest) is None:
            return None
        await self._questions.run((repository, digest), lambda: self.asked(repository, digest))
        return await self.held(repository, digest)

    async def close(self) -> None:
        """Stop asking and fetching."""
        await self._questions.close()
        await self._fetches.close()

    async def _headers_only(self, repository: Repository, digest: Digest) -> ManifestAnswer | None:
        """Upstream's own HEAD, or None if it told too little, or of another digest; the bytes can be held against this one."""
        head = await self.asked(repository, digest)
        if head.digest != digest or head.size is None or head.media_type is None:
            return None
        return ManifestAnswer(digest, head.media_type, head.size, None, Outcome.MISS)

    async def _remember_no(self, repository: Repository, reference: Reference, error: UpstreamRefusal, asked: float) -> None:
        if isinstance(reference, Tag) and not await self._refused(repository, reference, error, asked):
            return
        await self._content.cache_negative("manifest", repository, reference, error)

    async def _refused(self, repository: Repository, tag: Tag, error: UpstreamRefusal, asked: float) -> bool:
        """Note that upstream, asked at `asked`, refused a tag; False if a check that began later has found it."""
        context = self._context
        delete = isinstance(error, NotFound) and repository.registry not in context.policies.keep_deleted

        def write() -> bool:
            denied = isinstance(error, AccessDenied)
            counts = context.store.index.note_refusal(repository, tag, asked, context.clock(), delete=delete, denied=denied)
            if counts and delete:
                context.store.generation.change()
            if counts and isinstance(error, NotFound):
                context.store.index.attachments.put_absent(repository, tag, asked)
            return counts

        return await context.note(write, late=True)
