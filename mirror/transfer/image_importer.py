"""Imports the images of a bundle that has arrived, one after the other."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, Literal, ParamSpec, TypeVar

from mirror.aio import in_thread
from mirror.cache.cache import Cache
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.manifest import Descriptor
from mirror.core.media import DOCKER_MANIFEST
from mirror.core.names import ImageName, Repository
from mirror.core.signatures import subject_of
from mirror.errors import MirrorError
from mirror.storage.errors import storage_errors
from mirror.storage.staging import Staging
from mirror.transfer.docker_archive import NOTE, ManifestMaker
from mirror.transfer.documents import BundledImage, DockerImage
from mirror.transfer.errors import ImageRefused
from mirror.transfer.image_check import CheckedImage, ImageCheck
from mirror.transfer.publisher import Publisher
from mirror.transfer.receiver import BundleContent, BundleReceiver

# A signature is 1 deep, and what is attached to a signature 2.
_MAX_DEPTH: Final = 4

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class ImportedImage:
    """What has become of an image of a bundle.

    Attributes:
        name: with its registry and tag; what the bundle says if that is no name, or the digest if it says nothing.
        digest: of its manifest; None if it has none.
        result: `moved` if its tag named another digest before, `unchanged` if it named this one.
        old: the digest that the tag named before.
        cause: why it is refused.
        note: what the operator should know of it.
        platforms: of an index, those that are here now.
        left_out: of an index, those that are not.
        attached: it is a signature or another referrer.
    """

    name: str
    digest: Digest | None
    result: Literal["imported", "moved", "unchanged", "refused"]
    old: Digest | None = None
    cause: str | None = None
    note: str | None = None
    platforms: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    attached: bool = False


@dataclass(slots=True, eq=False)
class Entry:
    """An image of a bundle on its way.

    Attributes:
        name: the name that it gets, or why it gets none.
        is_attached: it is about an image of the bundle that is whole.
        result: None until its turn has come.
    """

    image: BundledImage
    name: ImageName | str
    is_attached: bool = False
    result: ImportedImage | None = None


class ImageImporter:
    """Imports the images of one bundle.

    Args:
        executor: one thread, which does what blocks.
    """

    def __init__(self, cache: Cache, staging: Staging, receiver: BundleReceiver, executor: Executor) -> None:
        context = cache.context
        public = frozenset(name for name, registry in context.registries.items() if not registry.private)
        self._cache = cache
        self._staging = staging
        self._receiver = receiver
        self._executor = executor
        self._check = ImageCheck(context.store.files, context.store.index, receiver.by_digest, public)
        self._maker = ManifestMaker(receiver, self._check.open)
        self._publisher = Publisher(cache, staging, receiver.by_digest)
        self._entries: list[Entry] = []
        self._attached: dict[tuple[Repository, Digest], list[Entry]] = {}

    @property
    def stored(self) -> int:
        """The bytes that were added to the store."""
        return self._publisher.stored

    @property
    def results(self) -> list[ImportedImage]:
        """What has become of the images so far, in the order of `run`."""
        return [entry.result for entry in self._entries if entry.result is not None]

    async def run(self, entries: list[Entry]) -> None:
        """Import images; a failure is a result.

        A signature comes just before the image that it is about, which may have to be signed; that of an image that is not in
        the bundle comes at the end.
        """
        self._entries = entries
        for entry in entries:
            subject = await self._subject(entry)
            if subject is not None:
                self._attached.setdefault(subject, []).append(entry)
        for entry in sorted(entries, key=lambda entry: entry.image.name.is_attached):
            if entry.result is None:
                await self._import(entry)

    async def _subject(self, entry: Entry) -> tuple[Repository, Digest] | None:
        """Return what a signature or another referrer is about; None for other images, and if it cannot be told."""
        name, content, subject = entry.name, entry.image.content, None
        if not entry.image.name.is_attached or not isinstance(name, ImageName) or not isinstance(content, Descriptor):
            return None
        if name.tag is not None:
            subject = subject_of(name.tag)
        else:
            # What is wrong with it is said when its turn comes.
            with contextlib.suppress(ImageRefused):
                subject = (await self._in_thread(self._check.check, content, name.repository)).subject
        return None if subject is None else (name.repository, subject)

    async def _import(self, entry: Entry, depth: int = 0) -> None:
        image, name = entry.image, entry.name
        try:
            if not isinstance(name, ImageName):
                raise ImageRefused(name)
            entry.result = await self._imported(entry, name, depth)
        except (MirrorError, InvalidInput) as error:
            digest = image.content.digest if isinstance(image.content, Descriptor) else None
            shown = str(name) if isinstance(name, ImageName) else _shown(image)
            entry.result = ImportedImage(shown, digest, "refused", cause=str(error), attached=image.name.is_attached)

    async def _imported(self, entry: Entry, name: ImageName, depth: int) -> ImportedImage:
        repository, image = name.repository, entry.image
        if depth > _MAX_DEPTH:
            raise ImageRefused(f"it is attached to what is attached to an image, more than {_MAX_DEPTH} deep")
        self._cache.context.registry(repository)
        await self._cache.pull_policy.check(repository, name.tag or name.reference)
        checked, note = await self._checked(image, name)
        if image.name.is_attached and not entry.is_attached:
            self._require_subject(name, checked)
        for manifest in checked.manifests:
            for attached in self._attached.pop((repository, manifest.digest), ()):
                attached.is_attached = True
                await self._import(attached, depth + 1)
        published = await self._publisher.publish(name, checked)
        return ImportedImage(
            str(name),
            checked.root.digest,
            published.result,
            published.old,
            note=note,
            platforms=tuple(checked.platforms),
            left_out=tuple(checked.left_out),
            attached=image.name.is_attached,
        )

    async def _checked(self, image: BundledImage, name: ImageName) -> tuple[CheckedImage, str | None]:
        """Return an image that is whole and may be pulled under its name, and what the operator should know of it."""
        descriptor, note = image.content, None
        if isinstance(descriptor, DockerImage):
            descriptor, note = await self._in_thread(self._make_manifest, descriptor), NOTE
        self._cache.pull_policy.check_content(name.repository, descriptor.digest)
        if name.digest not in (None, descriptor.digest):
            raise ImageRefused(f"its name says {name.digest}, and the bundle has {descriptor.digest}")
        return await self._in_thread(self._check.check, descriptor, name.repository), note

    def _require_subject(self, name: ImageName, checked: CheckedImage) -> None:
        """Raise ImageRefused for a signature of nothing, which could move any tag, and for one of what is not held."""
        subject = checked.subject if name.tag is None else subject_of(name.tag)
        if subject is None:
            raise ImageRefused("the bundle calls it a signature, and it is not about any other manifest")
        if not self._cache.context.store.index.has_manifest(name.repository, subject):
            raise ImageRefused(f"what it is about, {subject}, is not held")

    def _make_manifest(self, image: DockerImage) -> Descriptor:
        """Make the manifest of an image, and stage it like the content of the bundle."""
        with storage_errors("reading what is imported"):
            raw = self._maker.make(image)
        digest = Digest.of(raw)
        if self._check.find(digest) is None:
            file = self._staging.create(len(raw), str(digest))
            with contextlib.closing(file):
                file.write(raw)
                file.flush()
            self._receiver.by_digest[digest] = BundleContent(digest, len(raw), "its manifest", file.path)
        return Descriptor(digest, DOCKER_MANIFEST, len(raw))

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await in_thread(self._executor, work, *args, **kwargs)


def _shown(image: BundledImage) -> str:
    if image.name.image is not None:
        return str(image.name.image)
    return str(image.content.digest) if isinstance(image.content, Descriptor) else image.content.config
