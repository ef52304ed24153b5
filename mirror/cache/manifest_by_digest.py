"""Manifests by digest: they never expire, and are fetched once."""

from __future__ import annotations

from dataclasses import replace

from mirror.aio import SingleFlight
from mirror.cache.access_index import UNKNOWN_SIZE
from mirror.cache.answers import ManifestAnswer
from mirror.cache.content import CachedContent
from mirror.cache.context import Context
from mirror.cache.prefetch import Prefetch
from mirror.cache.recorded_grants import RecordedGrants
from mirror.cache.sights import Sights
from mirror.core.digest import Digest
from mirror.core.freshness import TagRecord
from mirror.core.manifest import Manifest, ManifestKind
from mirror.core.media import INDEX_TYPES, MANIFEST_TYPES
from mirror.core.names import Reference, Repository, Tag
from mirror.core.outcome import Outcome
from mirror.errors import AccessDenied, NotFound, UpstreamError, UpstreamRefusal
from mirror.upstream.flights import GuardedSingleFlight
from mirror.upstream.registry import ManifestHead


class ManifestByDigest:
    """Answers for digests, and fetches manifests for tags and for the resync."""

    def __init__(
        self, context: Context, content: CachedContent, prefetch: Prefetch, sights: Sights, recorded: RecordedGrants
    ) -> None:
        self._sights = sights
        self._recorded = recorded
        self._context = context
        self._content = content
        self._prefetch = prefetch
        self._fetches: GuardedSingleFlight[ManifestAnswer] = GuardedSingleFlight(context.in_use)
        # Not guarded: a failure must not delay the next request for a grant.
        self._heads: SingleFlight[ManifestHead] = SingleFlight(context.in_use)

    async def get(self, repository: Repository, digest: Digest, *, head: bool) -> ManifestAnswer:
        """The manifest with a digest; raises like `Manifests.get`."""
        cached = await self._find_or_raise(repository, digest)
        if cached is not None:
            return cached
        if head:
            answer = await self._headers_only(repository, digest)
            if answer is not None:
                return answer
        answer, joined = await self._fetches.run((repository, digest), lambda: self._fetch_once(repository, digest))
        return replace(answer, outcome=Outcome.JOINED) if joined else answer

    async def find_cached(self, repository: Repository, digest: Digest) -> ManifestAnswer | None:
        """The manifest from the store, or None if it is not there or not granted to the repository."""
        if not self._content.is_authorized("manifest", repository, digest):
            return None
        manifest = await self._content.read_manifest(repository, digest)
        if manifest is None:
            return None
        await self._content.record_cached(repository, manifest)
        return ManifestAnswer(digest, manifest.media_type, len(manifest.raw), manifest.raw, Outcome.HIT)

    async def head_upstream(self, repository: Repository, reference: Reference) -> ManifestHead:
        """Send a HEAD upstream; record what it grants, cache its refusal."""
        registry, asked = self._context.registry(repository), self._context.clock()
        try:
            head = await registry.head_manifest(repository.path, reference)
        except UpstreamRefusal as error:
            await self._cache_refusal(repository, reference, error, asked)
            raise
        await self.record_head(repository, reference, head)
        return head

    async def record_head(self, repository: Repository, reference: Reference, head: ManifestHead) -> None:
        """Record what upstream has answered to a HEAD, of this node or of another one."""
        await self._sights.note(repository, self._record_grant(repository, reference, head))

    def _record_grant(self, repository: Repository, reference: Reference, head: ManifestHead) -> Digest | None:
        """Record and return what a HEAD has granted; None if it names another digest or, as a portal's page, no manifest."""
        granted = head.digest
        if isinstance(reference, Digest):
            is_other = head.digest is None and head.media_type not in MANIFEST_TYPES | INDEX_TYPES
            granted = None if is_other or head.digest not in (reference, None) else reference
        if granted is not None:
            size = UNKNOWN_SIZE if head.size is None else head.size
            self._context.access.record_grant("manifest", repository, granted, size)
        return granted

    async def fetch(self, repository: Repository, reference: Reference) -> ManifestAnswer:
        """Get a manifest from upstream and store it."""
        registry, asked = self._context.registry(repository), self._context.clock()
        try:
            manifest = await registry.manifest(repository.path, reference)
        except UpstreamRefusal as error:
            await self._cache_refusal(repository, reference, error, asked)
            raise
        await self._sights.note(repository, manifest.digest)
        return await self._keep(repository, manifest)

    async def _fetch_once(self, repository: Repository, digest: Digest) -> ManifestAnswer:
        """Fetch a manifest unless another process does or did: one pull, whatever the number of processes."""
        async with self._context.store.turns.turn(digest):
            cached = await self._find_or_raise(repository, digest)
            return (
                replace(cached, outcome=Outcome.JOINED) if cached is not None else await self._fetch_for_all(repository, digest)
            )

    async def _fetch_for_all(self, repository: Repository, digest: Digest) -> ManifestAnswer:
        """Fetch a manifest unless another node of the cluster does or did."""
        cluster = self._context.cluster
        if cluster is None:
            return await self._read_object(repository, digest) or await self.fetch(repository, digest)
        async with cluster.manifest_turn(repository, digest) as turn:
            if turn.found is not None and await self._is_granted_elsewhere(repository, turn.found):
                return await self._keep(repository, turn.found)
            stored = await self._read_object(repository, digest)
            if stored is None:
                await cluster.refusals.raise_if_refused("manifest", repository, digest)
            answer = stored or await self.fetch(repository, digest)
            if answer.outcome is Outcome.MISS and answer.raw is not None:
                if stored is None and self._content.is_authorized("manifest", repository, digest):
                    await cluster.grants.share("manifest", repository, digest, answer.size)
                turn.fetched = answer.media_type, answer.raw
            return answer

    async def _read_object(self, repository: Repository, digest: Digest) -> ManifestAnswer | None:
        """Take a manifest from the bucket behind the store, once upstream grants it; None if it is not there."""
        objects = self._context.objects
        manifest = None if objects is None else await objects.manifest(repository, digest)
        if manifest is None:
            return None
        if not self._content.is_authorized("manifest", repository, digest):
            await self._ask(repository, digest)
        is_granted = self._content.is_authorized("manifest", repository, digest)
        return await self._keep(repository, manifest) if is_granted else None

    async def restore(self, repository: Repository, record: TagRecord) -> ManifestAnswer | None:
        """Take the manifest that upstream last gave for a tag of a repository from other nodes or the bucket, or return None."""
        cluster, objects, digest = self._context.cluster, self._context.objects, record.digest
        manifest = None if cluster is None else await cluster.manifests.find(digest)
        if manifest is None and objects is not None:
            manifest = await objects.manifest(repository, digest)
        if manifest is None:
            return None
        self._context.access.record_grant("manifest", repository, digest, len(manifest.raw))
        return await self._keep(repository, manifest)

    async def _is_granted_elsewhere(self, repository: Repository, manifest: Manifest) -> bool:
        """Whether upstream grants a manifest that another node has: by what is known, by that node's answer, or by a HEAD."""
        cluster, digest, size = self._context.cluster, manifest.digest, len(manifest.raw)
        if self._content.is_authorized("manifest", repository, digest):
            return True
        if cluster is None or not await cluster.grants.adopt("manifest", repository, digest, size):
            await self._ask(repository, digest)
        return self._content.is_authorized("manifest", repository, digest)

    async def _keep(self, repository: Repository, manifest: Manifest) -> ManifestAnswer:
        """Store a granted manifest; schema 1 and what the store cannot take bypasses the store."""
        answer = ManifestAnswer(manifest.digest, manifest.media_type, len(manifest.raw), manifest.raw, Outcome.MISS)
        if manifest.kind is ManifestKind.SCHEMA1 or not await self._content.store(repository, manifest):
            return replace(answer, outcome=Outcome.BYPASS)
        self._prefetch.on_fetched(repository, manifest)
        return answer

    async def _find_or_raise(self, repository: Repository, digest: Digest) -> ManifestAnswer | None:
        """The answer without a GET, or None; raises a cached refusal.

        Content that is stored for another repository costs a HEAD, which grants it to this one.
        """
        cached = await self.find_cached(repository, digest)
        if cached is not None:
            return cached
        self._content.raise_if_negative("manifest", repository, digest)
        if await self._content.read_manifest(repository, digest) is None:
            return None
        await self._ask(repository, digest)
        return await self.find_cached(repository, digest)

    async def _ask(self, repository: Repository, digest: Digest) -> None:
        """Have upstream grant a manifest by a HEAD, or, while it fails, what it said last. Raises like `head_upstream`."""
        try:
            await self._heads.run((repository, digest), lambda: self.head_upstream(repository, digest))
        except UpstreamError as error:
            if not await self._recorded.grant("manifest", repository, digest, error):
                raise

    async def close(self) -> None:
        """Cancel the requests to upstream."""
        await self._heads.close()
        await self._fetches.close()

    async def _headers_only(self, repository: Repository, digest: Digest) -> ManifestAnswer | None:
        """The answer from upstream's HEAD; None if it is incomplete or names another digest: the bytes decide then."""
        try:
            head = await self.head_upstream(repository, digest)
        except UpstreamError as error:
            if not await self._recorded.grant("manifest", repository, digest, error):
                raise
            return None
        if head.digest != digest or head.size is None or head.media_type is None:
            return None
        return ManifestAnswer(digest, head.media_type, head.size, None, Outcome.MISS)

    async def _cache_refusal(self, repository: Repository, reference: Reference, error: UpstreamRefusal, asked: float) -> None:
        if isinstance(reference, Tag) and not await self._record_refusal(repository, reference, error, asked):
            return
        await self._content.cache_negative("manifest", repository, reference, error)

    async def _record_refusal(self, repository: Repository, tag: Tag, error: UpstreamRefusal, asked: float) -> bool:
        """Record that upstream, asked at `asked`, refused a tag; False if a check that began later has found it."""
        context = self._context
        delete = isinstance(error, NotFound) and repository.registry not in context.policies.keep_deleted
        denied = isinstance(error, AccessDenied)
        if delete and context.policies.hold_rule(repository, tag) is not None:
            # A tag that is deleted and pushed again has moved, and is no new one.
            delete, denied = False, True

        def write() -> bool:
            is_served = context.store.index.tags.get(repository, tag) is not None
            is_latest = context.store.index.tags.note_refusal(
                repository, tag, asked, context.clock(), delete=delete, denied=denied
            )
            is_changed = False
            if is_latest and isinstance(error, NotFound):
                is_changed = context.store.index.holds.end(repository, tag)
            if is_latest and (is_served or is_changed):
                context.store.generation.change()
            if is_latest and isinstance(error, NotFound):
                context.store.index.attachments.put_absent(repository, tag, asked)
            return is_latest

        return await context.note(write, late=True)
