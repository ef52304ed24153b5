"""Brings what is about an image: its signatures, attestations and SBOMs, so that it can be verified while upstream is out.

Without them the image is as good as before: whatever goes wrong here fails nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

import structlog

from mirror.cache.answers import ManifestAnswer
from mirror.cache.blobs import Blobs
from mirror.cache.listings import Listings
from mirror.cache.manifest_by_digest import ManifestByDigest
from mirror.cache.pull_policy import PullPolicy
from mirror.cache.tag_store import TagStore
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.manifest import parse_manifest
from mirror.core.names import Reference, Repository, Tag
from mirror.core.outcome import Outcome
from mirror.core.signatures import signature_tags
from mirror.core.urgency import Urgency
from mirror.errors import MirrorError, NotFound, PolicyDenied
from mirror.storage.attachments import referrers_in

log = structlog.get_logger(__name__)

# Of one manifest; signed at each build for years, some would have very many.
_MAX_REFERRERS: Final = 100
# A larger one is no signature; clients that want it ask for it. Bytes.
_MAX_BLOB: Final = 64 << 20

Spend = Callable[[Repository], None]


class AttachmentSyncer:
    """Fetches what is about manifests that have been brought."""

    def __init__(
        self, pull_policy: PullPolicy, by_digest: ManifestByDigest, tag_store: TagStore, blobs: Blobs, listings: Listings
    ) -> None:
        self._pull_policy = pull_policy
        self._by_digest = by_digest
        self._tag_store = tag_store
        self._blobs = blobs
        self._listings = listings

    async def sync(self, repository: Repository, subjects: Iterable[Digest], spend: Spend) -> None:
        """Bring what upstream has about some manifests of a repository; what goes wrong is logged.

        Args:
            spend: called before each question; raises MirrorError if upstream may not be asked now.
        """
        for subject in subjects:
            try:
                listed = await self._referrers(repository, subject, spend)
                fallback, *tags = signature_tags(subject) or (None,)
                for tag in tags if listed or fallback is None else (fallback, *tags):
                    await self._tag(repository, tag, spend)
            except (MirrorError, InvalidInput) as error:
                log.info("signatures_not_synced", repository=str(repository), digest=str(subject), cause=str(error))
                return

    async def _referrers(self, repository: Repository, subject: Digest, spend: Spend) -> bool:
        """Bring the referrers of a manifest; False if upstream has no list of them, so that clients ask for a tag."""
        spend(repository)
        try:
            answer = await self._listings.referrers(repository, subject, "", {})
        except NotFound:
            return False
        for digest in referrers_in(answer.body)[:_MAX_REFERRERS]:
            await self._content(repository, digest, spend)
        return True

    async def _tag(self, repository: Repository, tag: Tag, spend: Spend) -> None:
        spend(repository)
        asked = self._tag_store.now()
        try:
            await self._pull_policy.check(repository, tag)
            head = await self._by_digest.head_upstream(repository, tag)
        except (NotFound, PolicyDenied):
            return
        answer = await self._content(repository, head.digest or tag, spend)
        if answer.outcome is not Outcome.BYPASS:
            await self._tag_store.update(repository, tag, answer, asked=asked, pulled=False)

    async def _content(self, repository: Repository, reference: Reference, spend: Spend, depth: int = 0) -> ManifestAnswer:
        """A manifest with its blobs, and of the fallback's index its manifests, too."""
        answer = await self._manifest(repository, reference, spend)
        assert answer.raw is not None
        manifest = parse_manifest(answer.raw, answer.media_type, answer.digest)
        for child in manifest.children[:_MAX_REFERRERS] if not depth else ():
            await self._content(repository, child.digest, spend, depth + 1)
        for blob in manifest.blobs:
            if not blob.is_foreign and blob.size <= _MAX_BLOB:
                await self._blobs.ensure_cached(repository, blob.digest, Urgency.SYNC)
        return answer

    async def _manifest(self, repository: Repository, reference: Reference, spend: Spend) -> ManifestAnswer:
        held = await self._by_digest.find_cached(repository, reference) if isinstance(reference, Digest) else None
        if held is not None:
            return held
        spend(repository)
        if isinstance(reference, Digest):
            return await self._by_digest.get(repository, reference, head=False)
        return await self._by_digest.fetch(repository, reference)
