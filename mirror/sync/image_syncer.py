"""Brings one image in sync with upstream: asked for by HEAD, fetched whole, and only then switched to.

So a pull finds a complete image at any moment, the old one or the new one.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from mirror.aio import together
from mirror.cache.answers import ManifestAnswer
from mirror.cache.blobs import Blobs
from mirror.cache.context import Context
from mirror.cache.manifest_by_digest import ManifestByDigest
from mirror.cache.pull_policy import PullPolicy
from mirror.cache.tag_store import TagStore
from mirror.cache.upstream_tags import every_tag
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput, InvalidManifest
from mirror.core.freshness import TagRecord
from mirror.core.manifest import Manifest, ManifestKind, parse_manifest
from mirror.core.media import SCHEMA1_TYPES
from mirror.core.names import Reference, Repository, Tag
from mirror.core.outcome import Outcome
from mirror.core.platform import Platform
from mirror.core.selection import chosen
from mirror.core.signatures import subject_of
from mirror.core.urgency import Urgency
from mirror.errors import MirrorError, NotFound, StorageError, UpstreamRateLimited, UpstreamRefusal
from mirror.storage.images import is_complete
from mirror.sync.attachments import AttachmentSyncer
from mirror.sync.platforms import held_platforms, own_platform
from mirror.sync.progress import Progress

# Indexes nest two deep in practice; a hostile one could nest for ever.
_DEEPEST = 4
# Some hundred platforms would be many.
_MAX_MANIFESTS = 1000
# Layers of one image that are fetched side by side, as many as Docker does.
_BLOBS_AT_ONCE = 3

Word = Literal["unchanged", "moved", "gone", "failed", "skipped"]


@dataclass(frozen=True, slots=True)
class Target:
    """An image to be brought in sync.

    Attributes:
        platforms: wanted in any case, beside those that were pulled before.
        fetch: whether its content is wanted even if the tag has not moved, or nobody has ever pulled it.
    """

    repository: Repository
    reference: Reference
    platforms: tuple[Platform, ...] = ()
    fetch: bool = False

    def __str__(self) -> str:
        return f"{self.repository}{':' if isinstance(self.reference, Tag) else '@'}{self.reference}"


@dataclass(frozen=True, slots=True)
class SyncResult:
    """What came of an image.

    Attributes:
        word: `moved` also for what was not held before.
        old: what the tag named before.
        new: what it names now.
        cause: of `gone`, `failed` and `skipped`.
    """

    word: Word
    old: Digest | None = None
    new: Digest | None = None
    cause: str | None = None


@dataclass(frozen=True, slots=True)
class ContentSelection:
    """What is wanted of what a tag names now.

    Attributes:
        platforms: of an index, these.
        whole: of a single manifest, its blobs.
        certain: that there is nothing for any of the platforms is a failure.
        exact: a single manifest is wanted whatever it is for: it was named by its digest, or named by a tag that clients pull.
    """

    platforms: tuple[Platform, ...]
    whole: bool
    certain: bool
    exact: bool


class ImageSyncer:
    """Brings images.

    Args:
        reserve: pulls of the limit that are left to clients.
    """

    def __init__(
        self,
        context: Context,
        by_digest: ManifestByDigest,
        tag_store: TagStore,
        blobs: Blobs,
        pull_policy: PullPolicy,
        attachments: AttachmentSyncer,
        reserve: int,
    ) -> None:
        self._attachments = attachments
        self._context = context
        self._by_digest = by_digest
        self._tag_store = tag_store
        self._blobs = blobs
        self._pull_policy = pull_policy
        self._reserve = reserve

    def held(self) -> AbstractContextManager[None]:
        """Keep the connections to upstreams open inside the context, whatever becomes of the configuration."""
        return self._context.in_use.hold()

    def may_ask(self, registry: str) -> bool:
        """Whether upstream is in order and its pull limit leaves something for work that nobody waits for."""
        found = self._context.registries.get(registry)
        return found is not None and found.allows_background(self._reserve)

    async def tags(self, repository: Repository) -> list[str]:
        """All tags of a repository that may be pulled; raises like `every_tag`.

        Raises:
            UpstreamRateLimited: if upstream may not be asked now, too.
        """
        self._spend(repository)
        return self._pull_policy.filter_tags(repository, await every_tag(self._context.registry(repository), repository))

    def progress(self, target: Target) -> Progress:
        """What to give to `bring`, and to look at meanwhile."""
        return Progress(str(target), self._blobs.bytes_received)

    async def bring(self, target: Target, progress: Progress) -> SyncResult:
        """Bring one image in sync; what goes wrong is part of the answer.

        Raises:
            UpstreamRateLimited: upstream wants to be asked less, or what is left of its limit is for clients.
        """
        try:
            await self._pull_policy.check(target.repository, target.reference)
            if isinstance(target.reference, Digest):
                return await self._by_its_digest(target, target.reference, progress)
            return await self._by_its_tag(target, target.reference, progress)
        except UpstreamRateLimited:
            raise
        except (MirrorError, InvalidInput) as error:
            return SyncResult("failed", cause=str(error))

    async def _by_its_digest(self, target: Target, digest: Digest, progress: Progress) -> SyncResult:
        fetched = progress.fetched
        answer = await self._manifest(target.repository, digest, progress)
        wish = ContentSelection(target.platforms, whole=True, certain=True, exact=True)
        brought = await self._content(target.repository, answer, wish, progress)
        result: Word = "unchanged" if progress.fetched == fetched else "moved"
        # What a digest names never changes, and once it is held in full upstream is not asked again.
        if result == "moved" or self._context.store.index.attachments.list(target.repository, digest, "") is None:
            await self._attachments.sync(target.repository, brought, self._spend)
        return SyncResult(result, None, digest)

    async def _by_its_tag(self, target: Target, tag: Tag, progress: Progress) -> SyncResult:
        repository, asked = target.repository, self._context.clock()
        self._spend(repository)
        record = self._tag_store.get(repository, tag)
        old = record.digest if record is not None else None
        try:
            head = await self._by_digest.head_upstream(repository, tag)
        except UpstreamRefusal as error:
            # Docker Hub denies what it does not have.
            return SyncResult("gone", old, cause=str(error))
        if head.digest is not None:
            self._pull_policy.check_content(repository, head.digest)
        if record is not None and head.digest == old and not target.fetch:
            return await self._switched(target, tag, old, _known(record), asked)
        answer = await self._named(repository, tag, head.digest, progress)
        brought = await self._content(repository, answer, await self._wish(target, old), progress)
        if subject_of(tag) is None:
            await self._attachments.sync(repository, brought, self._spend)
        return await self._switched(target, tag, old, answer, asked)

    async def _switched(self, target: Target, tag: Tag, old: Digest | None, answer: ManifestAnswer, asked: float) -> SyncResult:
        """Have the tag name what is there now, unless something later is known: a client has asked since, or it was purged.

        Args:
            asked: when upstream was asked. Fetching may have taken hours, in which it was not.
        """
        record = self._tag_store.get(target.repository, tag)
        known = record.digest if record is not None else None
        if known not in (old, answer.digest):
            gone = "was purged, or deleted upstream, meanwhile"
            return SyncResult("moved", old, known) if known is not None else SyncResult("gone", old, cause=gone)
        now = await self._tag_store.update(target.repository, tag, answer, asked=asked, pulled=False)
        new = answer.digest if now is None else now.digest
        return SyncResult("unchanged" if new == old else "moved", old, new)

    async def _wish(self, target: Target, old: Digest | None) -> ContentSelection:
        if old is None:
            return ContentSelection(target.platforms, whole=target.fetch, certain=target.fetch, exact=not target.fetch)
        files = self._context.store.files
        pulled = await self._context.in_thread(held_platforms, files, old)
        whole = target.fetch or await self._context.in_thread(is_complete, files, old)
        platforms = tuple(dict.fromkeys((*target.platforms, *pulled)))
        return ContentSelection(platforms, whole=whole, certain=target.fetch, exact=not target.fetch)

    # ---- content

    async def _named(self, repository: Repository, tag: Tag, digest: Digest | None, progress: Progress) -> ManifestAnswer:
        """The manifest that a HEAD of the tag has named, if it has named one."""
        try:
            return await self._manifest(repository, digest or tag, progress)
        except NotFound:
            # The tag has moved in between, or upstream's HEAD is not to be trusted.
            return await self._manifest(repository, tag, progress)

    async def _manifest(self, repository: Repository, reference: Reference, progress: Progress) -> ManifestAnswer:
        """A manifest, in the store."""
        if isinstance(reference, Digest):
            self._pull_policy.check_content(repository, reference)
            held = await self._by_digest.find_cached(repository, reference)
            if held is not None:
                progress.have(reference, held.size, 0)
                return held
            self._spend(repository)
            answer = await self._by_digest.get(repository, reference, head=False)
        else:
            self._spend(repository)
            answer = await self._by_digest.fetch(repository, reference)
            self._pull_policy.check_content(repository, answer.digest)
        if answer.media_type in SCHEMA1_TYPES:
            raise InvalidManifest(answer.media_type, "nothing vouches for the bytes of schema 1: it can be pulled, but not kept")
        if answer.outcome is Outcome.BYPASS:
            raise StorageError("the store cannot take its manifest", "full")
        progress.have(answer.digest, answer.size, answer.size)
        return answer

    async def _content(
        self, repository: Repository, answer: ManifestAnswer, wish: ContentSelection, progress: Progress
    ) -> list[Digest]:
        """Everything that a client of one of the platforms needs; each manifest once, in however many ways it is led to.

        Returns the manifests, the one that was answered first.
        """
        top = _parsed(answer)
        seen, waiting, images = {answer.digest: None}, [(answer.digest, 0)], 0
        while waiting:
            digest, depth = waiting.pop()
            # One at a time: a thousand of them could be of some megabytes each.
            manifest = _parsed(await self._manifest(repository, digest, progress)) if depth else top
            if manifest.kind is not ManifestKind.INDEX:
                images += 1
                if wish.whole or depth:
                    await self._all_blobs(repository, manifest, () if depth or wish.exact else wish.platforms, progress)
                continue
            named = dict.fromkeys(child.digest for child in chosen(manifest.children, wish.platforms))
            children = [child for child in named if child not in seen]
            seen.update(dict.fromkeys(children))
            if len(seen) > _MAX_MANIFESTS:
                raise InvalidManifest(str(top.digest), f"leads to more than {_MAX_MANIFESTS} manifests")
            waiting += [(child, depth + 1) for child in reversed(children) if depth < _DEEPEST]
        if wish.certain and not images and top.children:
            wanted = ", ".join(map(str, wish.platforms))
            raise NotFound(f"none of its manifests is for {wanted}; there are {_offered(top)}")
        return list(seen)

    async def _all_blobs(
        self, repository: Repository, manifest: Manifest, platforms: tuple[Platform, ...], progress: Progress
    ) -> None:
        """Its config and layers; no layers if there are platforms, and the config says that it is for none of them."""
        blobs = [blob for blob in {blob.digest: blob for blob in manifest.blobs}.values() if not blob.is_foreign]
        progress.expect(blobs)
        waiting = iter(blobs)

        async def work(most: int | None = None) -> None:
            for blob in islice(waiting, most):
                progress.have(blob.digest, blob.size, await self._blobs.ensure_cached(repository, blob.digest, Urgency.SYNC))

        if platforms:
            # The config comes before the layers.
            await work(1)
            own = await self._context.in_thread(own_platform, self._context.store.files, manifest)
            if own is not None and not any(platform.matches(own) for platform in platforms):
                raise NotFound(f"it is for {own}, not for {', '.join(map(str, platforms))}")
        await together(work() for _ in range(_BLOBS_AT_ONCE))

    def _spend(self, repository: Repository) -> None:
        found = self._context.registries.get(repository.registry)
        obstacle = f"{repository.registry} is not mirrored any more" if found is None else found.obstacle(self._reserve)
        if obstacle is not None:
            raise UpstreamRateLimited(obstacle)


def _parsed(answer: ManifestAnswer) -> Manifest:
    assert answer.raw is not None
    return parse_manifest(answer.raw, answer.media_type, answer.digest)


def _known(record: TagRecord) -> ManifestAnswer:
    return ManifestAnswer(record.digest, record.media_type, record.size, None, Outcome.REVALIDATED)


def _offered(index: Manifest) -> str:
    return ", ".join(dict.fromkeys(str(child.platform) for child in index.children if child.platform)) or "no platforms"
