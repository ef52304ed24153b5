"""Fetches the signatures, attestations and SBOMs of an image, so that clients can verify it while upstream is out of order.

A failure here fails nothing else: the image itself can be pulled without them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import structlog

from mirror.cache.answers import ManifestAnswer
from mirror.cache.cache import Cache
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.manifest import parse_manifest
from mirror.core.names import Reference, Repository, Tag
from mirror.core.outcome import Outcome
from mirror.core.signatures import signature_tags
from mirror.core.urgency import Urgency
from mirror.errors import MirrorError, NotFound, PolicyDenied
from mirror.storage.attachments import referrers_in
from mirror.sync.progress import Progress
from mirror.sync.quota import SyncQuota

log = structlog.get_logger(__name__)

# Of one manifest. An image that has been signed at each build for years has very many.
_MAX_REFERRERS: Final = 100
# A larger blob is no signature; a client that requires it fetches it.
_MAX_BLOB_BYTES: Final = 64 << 20


class AttachmentSyncer:
    """Fetches the attachments of the manifests of one image."""

    def __init__(self, cache: Cache, quota: SyncQuota, progress: Progress) -> None:
        self._cache = cache
        self._quota = quota
        self._progress = progress

    async def sync(self, repository: Repository, subjects: Iterable[Digest]) -> None:
        """Fetch what upstream has about manifests of a repository. A failure is logged and ends it."""
        for subject in subjects:
            try:
                listed = await self._referrers(repository, subject)
                fallback, *tags = signature_tags(subject) or (None,)
                for tag in tags if listed or fallback is None else (fallback, *tags):
                    await self._tag(repository, tag)
            except (MirrorError, InvalidInput) as error:
                log.info("signatures_not_synced", repository=str(repository), digest=str(subject), cause=str(error))
                return

    async def _referrers(self, repository: Repository, subject: Digest) -> bool:
        """Fetch the referrers of a manifest; False if upstream has no referrers API, so that clients use the fallback tag."""
        self._quota.check(repository)
        try:
            answer = await self._cache.listings.referrers(repository, subject, "", {})
        except NotFound:
            return False
        for digest in referrers_in(answer.body)[:_MAX_REFERRERS]:
            await self._content(repository, digest)
        return True

    async def _tag(self, repository: Repository, tag: Tag) -> None:
        self._quota.check(repository)
        tag_store = self._cache.tag_store
        asked = tag_store.now()
        try:
            await self._cache.pull_policy.check(repository, tag)
            head = await self._cache.by_digest.head_upstream(repository, tag)
        except (NotFound, PolicyDenied):
            return
        answer = await self._content(repository, head.digest or tag)
        if answer.outcome is not Outcome.BYPASS:
            await tag_store.update(repository, tag, answer, expected=None, asked=asked, pulled=False)

    async def _content(self, repository: Repository, reference: Reference, depth: int = 0) -> ManifestAnswer:
        """Fetch a manifest and its blobs; of the fallback tag's index its manifests, too."""
        answer = await self._manifest(repository, reference)
        assert answer.raw is not None
        manifest = parse_manifest(answer.raw, answer.media_type, answer.digest)
        for child in manifest.children[:_MAX_REFERRERS] if not depth else ():
            await self._content(repository, child.digest, depth + 1)
        for blob in manifest.blobs:
            if not blob.is_foreign and blob.size <= _MAX_BLOB_BYTES:
                with self._progress.fetch(blob.digest):
                    await self._cache.blobs.ensure_cached(repository, blob.digest, Urgency.SYNC)
        return answer

    async def _manifest(self, repository: Repository, reference: Reference) -> ManifestAnswer:
        by_digest = self._cache.by_digest
        held = await by_digest.find_cached(repository, reference) if isinstance(reference, Digest) else None
        if held is not None:
            return held
        self._quota.check(repository)
        if isinstance(reference, Digest):
            return await by_digest.get(repository, reference, head=False)
        return await by_digest.fetch(repository, reference)
