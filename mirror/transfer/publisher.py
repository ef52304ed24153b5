"""Makes the images of a bundle visible, each as soon as it is known to be whole."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from io import FileIO
from typing import Final, Literal, ParamSpec, TypeVar

from mirror.aio import in_thread
from mirror.cache.answers import ManifestAnswer
from mirror.cache.cache import Cache
from mirror.core.digest import Digest
from mirror.core.names import ImageName, ImagePattern, Repository
from mirror.core.outcome import Outcome
from mirror.core.signatures import subject_of
from mirror.core.units import format_bytes
from mirror.errors import StorageError
from mirror.storage.account import on_disk
from mirror.storage.errors import storage_errors
from mirror.storage.manifests import ManifestRecord
from mirror.storage.owner import owner_of
from mirror.storage.staging import PendingImage, Staging
from mirror.transfer.errors import ImageRefused
from mirror.transfer.image_check import CheckedImage
from mirror.transfer.receiver import BundleContent
from mirror.trust import verdict

T = TypeVar("T")
P = ParamSpec("P")

Result = Literal["imported", "moved", "unchanged"]

_ROWS_AT_ONCE: Final = 256


@dataclass(frozen=True, slots=True)
class Published:
    """How an image has become visible.

    Attributes:
        result: of its tag; without a tag, `unchanged` if the repository had it before.
        old: the digest that its tag named before.
    """

    result: Result
    old: Digest | None = None


class Publisher:
    """Publishes the images of one bundle.

    Args:
        content: what the bundle has, by digest.

    Attributes:
        stored: bytes that were added to the store.
    """

    def __init__(self, cache: Cache, staging: Staging, content: dict[Digest, BundleContent]) -> None:
        self._cache = cache
        self._context = cache.context
        self._staging = staging
        self._content = content
        self.stored = 0
        # The content of the images that are visible, with its bytes on disk, for each registry with a limit.
        self._published: dict[str, dict[Digest, int]] = {}

    async def publish(self, name: ImageName, image: CheckedImage) -> Published:
        """Store an image that is whole, grant it to its repository, and then switch the tag.

        Raises:
            ImageRefused: with the images before it, it is larger than the limit of its registry; or some of it was removed
                meanwhile.
            Untrusted: a rule of `trust` requires a signature. Maintenance removes the image then, as after every failure.
            UpstreamError: nobody knows for now whether it is signed.
            StorageError: the store cannot take it.
        """
        context, repository, root = self._context, name.repository, image.root.digest
        staged = self._staged(image)
        await self._reserve(repository, image, staged)
        was_held = context.store.index.manifests.get(repository, root) is not None
        pending = await self._in_thread(self._pending, repository, image, staged)
        number = await self._in_thread(self._staging.announce, pending)
        # Before the bytes: a concurrent purge keeps what a recorded manifest needs.
        await self._record(repository, image, force=False)
        await self._written()
        await in_thread(context.store.threads.flush, self._commit, pending, staged)
        # And after them: maintenance deletes rows without bytes.
        await self._record(repository, image, force=True)
        await self._written()
        if self._cache.trust is not None:
            await self._cache.trust.require_manifest(repository, name.reference, root)
        await self._in_thread(self._require_content, image)
        published = await self._switch(name, image)
        await self._attach(repository, image)
        await self._in_thread(self._forget_refusals, name, image)
        await self._written()
        await self._in_thread(self._staging.settle, number)
        await self._in_thread(self._note_published, repository.registry, image)
        if name.tag is None:
            return Published("unchanged" if was_held else "imported")
        return published

    # ---- content

    def _staged(self, image: CheckedImage) -> list[BundleContent]:
        """Return the content that has to be stored, manifests last."""
        found = (self._content.get(digest) for digest in _digests(image))
        return [content for content in found if content is not None and content.path is not None]

    async def _reserve(self, repository: Repository, image: CheckedImage, staged: list[BundleContent]) -> None:
        """Have room for content within the limit of its registry; in the whole store it has room already."""
        registry, quota = repository.registry, self._context.store.quota
        new = {content.digest: on_disk(content.size) for content in staged}
        size, limit = sum(new.values()), quota.limit_of(registry)
        if not limit or not new:
            return
        held = await self._in_thread(self._counted, registry, image)
        needed = sum({**self._published.get(registry, {}), **held, **new}.values())
        if needed > limit:
            who = "it and the images before it need" if self._published.get(registry) else "it needs"
            raise ImageRefused(f"{who} {format_bytes(needed)}, and registries.{registry}.max_size is {format_bytes(limit)}")

        def is_short() -> bool:
            return bool(quota.shortage_for(size, registry))

        if await self._in_thread(is_short):
            await self._context.make_registry_room(size, registry)
            if await self._in_thread(is_short):
                raise StorageError(f"no room for {format_bytes(size)} within registries.{registry}.max_size", "full")

    def _note_published(self, registry: str, image: CheckedImage) -> None:
        if self._context.store.quota.limit_of(registry):
            self._published.setdefault(registry, {}).update(self._counted(registry, image))

    def _counted(self, registry: str, image: CheckedImage) -> dict[Digest, int]:
        """Return the cached content of an image that counts for a registry, with its bytes on disk."""
        layout = self._context.store.layout
        sizes = {**image.blobs, **{manifest.digest: manifest.size for manifest in image.manifests}}
        return {digest: on_disk(size) for digest, size in sizes.items() if owner_of(layout.blob(digest)) == registry}

    def _pending(self, repository: Repository, image: CheckedImage, staged: list[BundleContent]) -> PendingImage:
        index, files = self._context.store.index, self._context.store.files
        new = (one.digest for one in image.manifests if index.manifests.get(repository, one.digest) is None)
        content = (one.digest for one in staged if files.size(one.digest) != one.size)
        return PendingImage(repository, tuple(new), tuple(content))

    def _commit(self, pending: PendingImage, staged: list[BundleContent]) -> None:
        """Store content; what another download has stored meanwhile stays."""
        files, registry = self._context.store.files, pending.repository.registry
        for content in staged:
            path = content.path
            assert path is not None
            if files.size(content.digest) != content.size:
                self._commit_one(path, content, registry)
                self.stored += content.size
            else:
                self._staging.remove(path)
            content.path = None

    def _commit_one(self, path: str, content: BundleContent, registry: str) -> None:
        quota = self._context.store.quota
        try:
            with closing(_open(content.member, path)) as file:
                if quota.keeps_owners:
                    quota.assign(path, content.size, 0, registry)
                self._context.store.files.commit(path, file.fileno(), content.digest)
        except StorageError:
            # Another attempt with the same file would seem to succeed: the kernel reports a failed write only once.
            self._staging.remove(path)
            content.path, content.damage = None, "it could not be written to the disk"
            raise

    def _require_content(self, image: CheckedImage) -> None:
        """Raise ImageRefused unless everything of an image is there: eviction and purges go on meanwhile."""
        lost = next((digest for digest in _digests(image) if self._context.store.files.size(digest) is None), None)
        if lost is not None:
            raise ImageRefused(f"{lost} was removed from the store during the import")

    # ---- rows

    async def _record(self, repository: Repository, image: CheckedImage, *, force: bool) -> None:
        """Grant the content of an image to its repository, as if upstream had given it."""
        access = self._context.access
        for number, (digest, size) in enumerate(image.blobs.items(), 1):
            # Each reads the index, and an image may have 50,000.
            if number % _ROWS_AT_ONCE == 0:
                await asyncio.sleep(0)
            access.record_grant("blob", repository, digest, size, force=force)
        for one in image.manifests:
            access.record_grant("manifest", repository, one.digest, one.size, force=force)
            held = ManifestRecord(one.media_type, one.size)
            access.record_manifest(repository, one.digest, held, one.parts, force=force)

    async def _switch(self, name: ImageName, image: CheckedImage) -> Published:
        """Have the tag of an image name it."""
        store, tag, root = self._cache.tag_store, name.tag, image.root
        if tag is None:
            return Published("imported")
        before, asked = store.get(name.repository, tag), store.now()
        answer = ManifestAnswer(root.digest, root.media_type, root.size, None, Outcome.MISS)
        expected = None if before is None else before.digest
        await store.update(name.repository, tag, answer, expected=expected, asked=asked, pulled=False)
        if before is None:
            return Published("imported")
        return Published("unchanged" if before.digest == root.digest else "moved", before.digest)

    def _forget_refusals(self, name: ImageName, image: CheckedImage) -> None:
        """Drop what upstream, its absence, or the lack of this signature has refused before."""
        store = self._context.store
        store.index.negative.delete_matching(ImagePattern(name.repository.registry, name.repository.path, None, None))
        if name.tag is not None:
            store.index.attachments.delete_absent(name.repository, name.tag)
        for subject in (image.subject, None if name.tag is None else subject_of(name.tag)):
            if subject is not None:
                store.index.verdicts.delete_refusals(name.repository, subject, verdict.Result.SIGNED)
        store.generation.change()

    async def _written(self) -> None:
        """Wait until everything that has been recorded is in the index: one thread writes it, in order."""
        await in_thread(self._context.store.threads.note, _nothing)

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await in_thread(self._context.store.threads.put, work, *args, **kwargs)

    # ---- referrers

    async def _attach(self, repository: Repository, image: CheckedImage) -> None:
        """Add a referrer to the list of those of its subject that were imported, as upstream would list it."""
        subject = image.subject
        if subject is not None:
            await self._context.note(partial(self._add_referrer, repository, subject, image), None)

    def _add_referrer(self, repository: Repository, subject: Digest, image: CheckedImage) -> None:
        context = self._context
        context.store.index.attachments.add_imported(repository, subject, self._entry(image), context.clock())
        context.store.generation.change()

    def _entry(self, image: CheckedImage) -> dict[str, object]:
        """Return the descriptor of a referrer (OCI distribution-spec, Listing Referrers)."""
        root = image.root
        entry: dict[str, object] = {"mediaType": root.media_type, "size": root.size, "digest": str(root.digest)}
        if image.artifact_type is not None:
            entry["artifactType"] = image.artifact_type
        raw = self._context.store.files.read(root.digest, root.size)
        annotations = json.loads(raw).get("annotations") if raw is not None else None
        if annotations:
            entry["annotations"] = annotations
        return entry


def _digests(image: CheckedImage) -> list[Digest]:
    """Return the content of an image, manifests last."""
    return list(dict.fromkeys([*image.blobs, *(manifest.digest for manifest in image.manifests)]))


def _open(member: str, path: str) -> FileIO:
    with storage_errors(f"storing {member}"):
        return FileIO(path)


def _nothing() -> None:
    pass
