"""Brings one image in sync with upstream: checks it by HEAD, fetches it whole, and only then switches the tag.

So a client always pulls a complete image, the old one or the new one.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Literal

from mirror.cache.answers import ManifestAnswer
from mirror.cache.cache import Cache
from mirror.cache.upstream_tags import every_tag
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.freshness import TagRecord
from mirror.core.names import Reference, Repository, Tag
from mirror.core.outcome import Outcome
from mirror.core.platform import Platform
from mirror.core.signatures import subject_of
from mirror.core.tag_moves import FOLLOW, Follow, Keep, Reason, Refuse, until
from mirror.errors import MirrorError, TooYoung, Untrusted, UpstreamRateLimited, UpstreamRefusal
from mirror.storage.images import is_complete
from mirror.sync.attachments import AttachmentSyncer
from mirror.sync.content import ContentSelection, ImageContent
from mirror.sync.platforms import held_platforms
from mirror.sync.progress import Progress
from mirror.sync.quota import SyncQuota

Status = Literal["unchanged", "completed", "moved", "held_back", "untrusted", "gone", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Target:
    """An image to be brought in sync.

    Attributes:
        platforms: to fetch beside those that clients have pulled.
        fetch: fetch its content even if the tag has not moved, or no client has pulled it.
    """

    repository: Repository
    reference: Reference
    platforms: tuple[Platform, ...] = ()
    fetch: bool = False

    def __str__(self) -> str:
        return f"{self.repository}{':' if isinstance(self.reference, Tag) else '@'}{self.reference}"


@dataclass(frozen=True, slots=True)
class SyncResult:
    """The result of one image's sync.

    Attributes:
        status: `moved` also for an image that was not cached before; `completed` if content was missing of an unmoved one;
            `held_back` if the tag does not follow upstream for now; `untrusted` if what upstream names is not signed.
        old: the digest before.
        new: the digest now.
        cause: of `held_back`, `untrusted`, `gone`, `failed` and `skipped`.
    """

    status: Status
    old: Digest | None = None
    new: Digest | None = None
    cause: str | None = None


class ImageSyncer:
    """Brings images in sync.

    Args:
        reserve: pulls of each registry's limit that are left to clients.
    """

    def __init__(self, cache: Cache, reserve: int) -> None:
        self._cache = cache
        self._context = cache.context
        self._quota = SyncQuota(cache.context.registries, reserve)

    def keep_open(self) -> AbstractContextManager[None]:
        """Keep the connections to upstreams open inside the context, also if the configuration changes."""
        return self._context.in_use.hold()

    def may_ask(self, registry: str) -> bool:
        """Whether syncing may send requests to a registry now."""
        return self._quota.allows(registry)

    def may_pull(self, repository: Repository, tag: Tag) -> bool:
        """Whether clients may pull a tag, as far as its name decides."""
        return self._cache.pull_policy.may_list(repository, tag)

    async def tags(self, repository: Repository) -> list[str]:
        """Return all tags of a repository that may be pulled. Raises like `every_tag`.

        Raises:
            UpstreamRateLimited: upstream may not be asked now.
        """
        self._quota.check(repository)
        return self._cache.pull_policy.filter_tags(repository, await every_tag(self._context.registry(repository), repository))

    def progress(self, target: Target) -> Progress:
        """Return the progress to pass to `sync`."""
        return Progress(str(target), self._cache.blobs.bytes_received)

    def stop_fetching(self, progress: Progress) -> None:
        """Stop the downloads of an interrupted sync, unless clients or other jobs wait for them; their bytes stay on disk."""
        for digest in progress.fetching:
            self._cache.blobs.stop_background(digest)

    async def sync(self, target: Target, progress: Progress, since: float) -> SyncResult:
        """Bring one image in sync; a failure is a result.

        Args:
            since: checks of other nodes that began later count, in seconds since the epoch.

        Raises:
            UpstreamRateLimited: upstream limits requests, or what is left of its pull limit is the clients' part.
        """
        content = ImageContent(self._cache, self._quota, target.repository, progress)
        try:
            await self._cache.pull_policy.check(target.repository, target.reference)
            if isinstance(target.reference, Digest):
                return await self._sync_digest(target, target.reference, content, progress)
            return await self._sync_tag(target, target.reference, content, since)
        except UpstreamRateLimited:
            raise
        except TooYoung as error:
            return SyncResult("held_back", cause=str(error))
        except Untrusted as error:
            return SyncResult("untrusted", cause=str(error))
        except (MirrorError, InvalidInput) as error:
            return SyncResult("failed", cause=str(error))

    async def _sync_digest(self, target: Target, digest: Digest, content: ImageContent, progress: Progress) -> SyncResult:
        repository = target.repository
        await self._cache.new_digests.check(repository, digest)
        answer = await content.manifest(digest)
        await self._require_trusted(repository, digest, digest)
        was_held = not progress.fetched
        selection = ContentSelection(target.platforms, whole=True, require_match=True, exact=True)
        manifests = await content.fetch(answer, selection)
        status: Status = "unchanged" if not progress.fetched else "completed" if was_held else "moved"
        # The content of a digest never changes: once its attachments are cached, upstream is not asked again.
        if status != "unchanged" or self._context.store.index.attachments.list(repository, digest, "") is None:
            await AttachmentSyncer(self._cache, self._quota, progress).sync(repository, manifests)
        return SyncResult(status, None, digest)

    async def _sync_tag(self, target: Target, tag: Tag, content: ImageContent, since: float) -> SyncResult:
        repository, progress = target.repository, content.progress
        self._quota.check(repository)
        record = self._cache.tag_store.get(repository, tag)
        old = record.digest if record is not None else None
        # What other nodes keep counts for the decision alone: nothing of the image is known to be here.
        record = record or await self._cache.tag_store.recall(repository, tag)
        try:
            check = await self._cache.tag_checks.check(repository, tag, math.inf, since)
        except UpstreamRefusal as error:
            # Docker Hub denies access to what does not exist.
            return SyncResult("gone", old, cause=str(error))
        head, asked = check.head, check.asked
        moves = self._cache.tag_store.moves
        decision = FOLLOW if head.digest is None else await moves.decide(repository, tag, record, head.digest)
        if not isinstance(decision, Follow):
            return await self._keep(target, tag, decision, content, asked)
        if head.digest is not None:
            self._cache.pull_policy.check_content(repository, head.digest)
            await self._require_trusted(repository, tag, head.digest)
        if record is not None and head.digest == old and not target.fetch:
            return await self._switched(target, tag, old, _known(record), asked)
        answer = await content.named(tag, head.digest)
        if answer.digest != head.digest:
            decision = await moves.decide(repository, tag, record, answer.digest)
            if not isinstance(decision, Follow):
                return await self._keep(target, tag, decision, content, asked)
            await self._require_trusted(repository, tag, answer.digest)
        manifests = await content.fetch(answer, await self._selection(target, old))
        if subject_of(tag) is None:
            await AttachmentSyncer(self._cache, self._quota, progress).sync(repository, manifests)
        synced = await self._switched(target, tag, old, answer, asked)
        return replace(synced, status="completed") if synced.status == "unchanged" and progress.fetched else synced

    async def _require_trusted(self, repository: Repository, reference: Reference, digest: Digest) -> None:
        """Return if what a reference names may be served. Raises like `TrustGate.require_manifest`."""
        if self._cache.trust is not None:
            await self._cache.trust.require_manifest(repository, reference, digest)

    async def _keep(self, target: Target, tag: Tag, decision: Keep | Refuse, content: ImageContent, asked: float) -> SyncResult:
        """Leave a tag where it is; complete its content if that is wanted."""
        repository = target.repository
        record = self._cache.tag_store.get(repository, tag)
        cause = f"{decision.digest} is held back {until(decision)}"
        untrusted = isinstance(decision, Keep) and decision.reason is Reason.UNTRUSTED
        status: Status = "untrusted" if untrusted else "held_back"
        if record is None:
            return SyncResult(status, cause=cause)
        answer = _known(record)
        if target.fetch:
            answer = await content.manifest(record.digest)
            await content.fetch(answer, await self._selection(target, record.digest))
        synced = await self._switched(target, tag, record.digest, answer, asked)
        return replace(synced, status=status, cause=cause) if synced.status == "unchanged" else synced

    async def _switched(self, target: Target, tag: Tag, old: Digest | None, answer: ManifestAnswer, asked: float) -> SyncResult:
        """Switch the tag to an answer, unless a client's request or a purge has changed the tag meanwhile.

        Args:
            asked: when upstream was asked; fetching the content may have taken hours since.
        """
        tag_store = self._cache.tag_store
        record = tag_store.get(target.repository, tag)
        known = record.digest if record is not None else None
        if known not in (old, answer.digest):
            gone = "was purged, or deleted upstream, meanwhile"
            return SyncResult("moved", old, known) if known is not None else SyncResult("gone", old, cause=gone)
        now = await tag_store.update(target.repository, tag, answer, expected=old, asked=asked, pulled=False)
        new = answer.digest if now is None else now.digest
        return SyncResult("unchanged" if new == old else "moved", old, new)

    async def _selection(self, target: Target, old: Digest | None) -> ContentSelection:
        """Select what was asked for, and the platforms that are cached of the old image."""
        fetch = target.fetch
        if old is None:
            return ContentSelection(target.platforms, whole=fetch, require_match=fetch, exact=not fetch)
        files = self._context.store.files
        pulled = await self._context.in_thread(held_platforms, files, old)
        whole = fetch or await self._context.in_thread(is_complete, files, old)
        platforms = tuple(dict.fromkeys((*target.platforms, *pulled)))
        return ContentSelection(platforms, whole=whole, require_match=fetch, exact=not fetch)


def _known(record: TagRecord) -> ManifestAnswer:
    return ManifestAnswer(record.digest, record.media_type, record.size, None, Outcome.REVALIDATED)
