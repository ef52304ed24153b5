"""Collects images for a bundle: finds a manifest as a pull does, fetches what is missing, and pins the content."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import structlog

from mirror.cache.cache import Cache
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.names import Reference, Repository, Tag
from mirror.core.platform import Platform
from mirror.core.signatures import signature_tags, subject_of
from mirror.core.urgency import Urgency
from mirror.errors import MirrorError, StorageError
from mirror.storage.coordination import wait
from mirror.sync.attachments import AttachmentSyncer
from mirror.sync.content import ContentSelection, ImageContent, require_stored
from mirror.sync.platforms import held_platforms
from mirror.sync.progress import Progress
from mirror.sync.quota import SyncQuota
from mirror.transfer.bundle import Bundle, DockerImage, Entry
from mirror.transfer.contents import Contents, read_contents
from mirror.transfer.names import ExportTarget
from mirror.transfer.pins import Pins
from mirror.transfer.selection import docker_image, held_children

log = structlog.get_logger(__name__)

# A manifest that has just been fetched is on its way to the disk.
_WRITE_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True)
class FoundImage:
    """An image whose manifest is held.

    Attributes:
        former: the manifest that its tag named before.
    """

    target: ExportTarget
    digest: Digest
    former: Digest | None


@dataclass(frozen=True)
class ImageReport:
    """What a bundle has of an image.

    Attributes:
        left_out: the platforms of its index that the bundle has not.
        attached: number of signatures and other referrers.
        docker_obstacle: why `docker load` does not get it; None if it does.
    """

    image: str
    digest: str
    platforms: list[str]
    left_out: list[str]
    attached: int
    docker_obstacle: str | None


class Collector:
    """Collects the images of one bundle. Its coroutines raise MirrorError or InvalidInput.

    Args:
        without: layers of earlier bundles.
        platforms: the configured ones, for an index of which nothing is held.

    Attributes:
        bundle: what has been collected.
        pins: its open files.
    """

    def __init__(self, cache: Cache, quota: SyncQuota, without: frozenset[Digest], platforms: tuple[Platform, ...]) -> None:
        self.bundle = Bundle()
        self.pins = Pins(cache.context.store.files)
        self._cache = cache
        self._context = cache.context
        self._quota = quota
        self._without = without
        self._platforms = platforms

    def progress(self, target: ExportTarget) -> Progress:
        """Return the progress to pass to `find` and `add`."""
        return Progress(target.name, self._cache.blobs.bytes_received)

    async def find(self, target: ExportTarget) -> FoundImage:
        """Find the manifest that a pull of the image would get now, and have it in the store."""
        cache, repository, reference = self._cache, target.repository, target.reference
        await cache.pull_policy.check(repository, reference)
        record = cache.tag_store.get(repository, reference) if isinstance(reference, Tag) else None
        answer, _ = await cache.manifests.find(repository, reference, head=False)
        require_stored(answer)
        return FoundImage(target, answer.digest, None if record is None else record.digest)

    async def add(self, image: FoundImage, progress: Progress) -> ImageReport:
        """Fetch what is missing of an image, and add it to the bundle with what is attached to it."""
        target, context = image.target, self._context
        content = ImageContent(self._cache, self._quota, target.repository, progress)
        answer = await content.manifest(image.digest)
        manifests = await content.fetch(answer, await context.in_thread(self._selection, image))
        found = await self._contents(manifests)
        docker = docker_image(found.manifests, target.platforms)
        loadable = docker if isinstance(docker, DockerImage) else None
        entry = Entry(
            target.repository,
            target.reference,
            answer.digest,
            answer.media_type,
            answer.size,
            is_attached=isinstance(target.reference, Tag) and subject_of(target.reference) is not None,
            left_out=tuple(found.left_out),
            docker=loadable,
        )
        await self._add(entry, found)
        attached = 0 if entry.is_attached else await self._add_attached(target.repository, manifests, progress)
        left_out = [platform for platform in found.left_out.values() if platform]
        return ImageReport(entry.name, str(answer.digest), found.platforms, left_out, attached, None if loadable else str(docker))

    def _selection(self, image: FoundImage) -> ContentSelection:
        files, asked = self._context.store.files, image.target.platforms
        also, platforms = held_children(files, image.digest, asked, self._without), asked
        if not asked and not also:
            platforms = held_platforms(files, image.former) if image.former is not None else ()
            platforms = platforms or self._platforms
        return ContentSelection(
            platforms, whole=True, require_match=bool(platforms), exact=not asked, also=also, without=self._without
        )

    async def _contents(self, manifests: list[Digest]) -> Contents:
        """Read the content of the image with these manifests, as soon as they are on the disk."""
        small = self._context.store.small
        for digest in manifests:
            await wait(lambda digest=digest: small.get(digest) is None, _WRITE_TIMEOUT_S)  # type: ignore[misc]
            if self.pins.pin(digest) is None:
                raise self._lost(digest)
        return await self._context.in_thread(read_contents, self._context.store.files, manifests, self._without)

    async def _add(self, entry: Entry, found: Contents) -> None:
        self.bundle.add(entry, [(digest, await self._pin(entry.repository, digest)) for digest in found.blobs])
        # What has been evicted and is pinned takes space of the disk that no account counts.
        if self._max_size and self.bundle.content_bytes > self._max_size:
            raise StorageError(f"the bundle would have {self.bundle.content_bytes} bytes: {self._room}", "too_large")

    async def _pin(self, repository: Repository, digest: Digest) -> int:
        """Pin a blob; fetch it again if it has been evicted since it was fetched."""
        size = self.pins.pin(digest)
        if size is None:
            await self._cache.blobs.ensure_cached(repository, digest, Urgency.SYNC)
            size = self.pins.pin(digest)
        if size is None:
            raise self._lost(digest)
        return size

    def _lost(self, digest: Digest) -> StorageError:
        """Return the error about a blob that was evicted or purged before it was pinned."""
        return StorageError(f"{digest} has left the store meanwhile{f': {self._room}' if self._max_size else ''}", "io")

    @property
    def _max_size(self) -> int:
        return self._context.store.quota.max_size

    @property
    def _room(self) -> str:
        return f"all of a bundle has to be in the store at once, and storage.max_size is {self._max_size} bytes"

    # ---- signatures and other referrers

    async def _add_attached(self, repository: Repository, subjects: Iterable[Digest], progress: Progress) -> int:
        """Add what is attached to manifests of an image; returns how much. A failure is logged: the image can do without."""
        if self._quota.allows(repository.registry):
            await AttachmentSyncer(self._cache, self._quota, progress).sync(repository, self._unknown(repository, subjects))
        added = 0
        for reference in await self._context.in_thread(self._attached, repository, subjects):
            try:
                await self._cache.pull_policy.check(repository, reference)
                # It may be held back from clients by other rules, too.
                answer, _ = await self._cache.manifests.find(repository, reference, head=False)
                require_stored(answer)
                await self._add_one_attached(repository, reference, answer.digest, progress)
                added += 1
            except (MirrorError, InvalidInput) as error:
                log.info("attachment_not_exported", repository=str(repository), reference=str(reference), cause=str(error))
        return added

    def _unknown(self, repository: Repository, subjects: Iterable[Digest]) -> list[Digest]:
        """Return the manifests about which upstream was not asked lately."""
        attachments, since = self._context.store.index.attachments, self._context.clock() - self._context.policies.general.ttl
        kept = ((subject, attachments.list(repository, subject, "")) for subject in subjects)
        return [subject for subject, known in kept if known is None or known.asked < since]

    def _attached(self, repository: Repository, subjects: Iterable[Digest]) -> list[Reference]:
        index = self._context.store.index
        found: dict[Reference, None] = {}
        for subject in subjects:
            found.update({tag: None for tag in signature_tags(subject) if index.tags.get(repository, tag) is not None})
            found.update(dict.fromkeys(sorted(index.attachments.referrers(repository, subject), key=str)))
        return list(found)

    async def _add_one_attached(self, repository: Repository, reference: Reference, digest: Digest, progress: Progress) -> None:
        content = ImageContent(self._cache, self._quota, repository, progress)
        answer = await content.manifest(digest)
        also = await self._context.in_thread(held_children, self._context.store.files, digest, (), self._without)
        selection = ContentSelection((), whole=True, require_match=False, exact=True, also=also, without=self._without)
        found = await self._contents(await content.fetch(answer, selection))
        entry = Entry(
            repository, reference, digest, answer.media_type, answer.size, is_attached=True, left_out=tuple(found.left_out)
        )
        await self._add(entry, found)
