"""Imports of bundles into the store of a running mirror."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Final, Literal

from mirror.aio import in_thread, uninterrupted
from mirror.cache.cache import Cache
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.manifest import Descriptor
from mirror.core.media import DOCKER_MANIFEST
from mirror.core.names import LATEST, ImageName
from mirror.core.signatures import subject_of
from mirror.errors import MirrorError, StorageError
from mirror.storage.staging import Staging
from mirror.transfer.docker_archive import NOTE, ManifestMaker
from mirror.transfer.documents import BundledImage, DockerImage, read_images
from mirror.transfer.entry_names import named_as
from mirror.transfer.errors import ImageRefused, InvalidBundle
from mirror.transfer.image_check import CheckedImage, ImageCheck
from mirror.transfer.publisher import Publisher
from mirror.transfer.receiver import BundleContent, BundleReceiver

MAX_IMPORTS: Final = 2
"""Imports of one process at a time."""

_ROOM_TIMEOUT_S: Final = 30.0


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


class TooManyImports(StorageError):
    """As many imports run as one process takes."""

    def __init__(self) -> None:
        super().__init__(f"{MAX_IMPORTS} imports are running; try again when one has ended", "busy")


class Imports:
    """Runs imports. Outlives reloads; `configure` must be called before it is used."""

    def __init__(self) -> None:
        self._running = 0

    def configure(self, cache: Cache, default_registry: str) -> None:
        """Use another cache from now on; running imports keep theirs."""
        self._cache = cache
        self._default_registry = default_registry

    @contextlib.asynccontextmanager
    async def begin(self, name: str | None) -> AsyncIterator[BundleImport]:
        """Import a bundle inside the context; what it has brought is removed if `finish` is not reached.

        Args:
            name: the name of an image that has none in the bundle; None for none.

        Raises:
            InvalidInput: the name is none.
            TooManyImports: see that.
            StorageError: the store cannot be written.
        """
        named = None if name is None else ImageName.parse(name, self._default_registry)
        if self._running >= MAX_IMPORTS:
            raise TooManyImports
        self._running += 1
        cache, executor = self._cache, ThreadPoolExecutor(1, "import")
        try:
            store = cache.context.store
            with cache.context.in_use.hold():
                staging = await in_thread(executor, Staging, store.layout, store.quota)
                importing = BundleImport(cache, staging, executor, named)
                try:
                    yield importing
                finally:
                    await uninterrupted(importing.close())
        finally:
            executor.shutdown(wait=False)
            self._running -= 1


class BundleImport:
    """One import: receives a bundle, and then makes its images visible."""

    def __init__(self, cache: Cache, staging: Staging, executor: ThreadPoolExecutor, name: ImageName | None) -> None:
        self._cache = cache
        self._staging = staging
        self._executor = executor
        self._name = name
        loop, context = asyncio.get_running_loop(), cache.context

        def make_room(size: int) -> None:
            made = asyncio.run_coroutine_threadsafe(context.make_room(size, None), loop)
            with contextlib.suppress(TimeoutError):
                made.result(_ROOM_TIMEOUT_S)

        self._receiver = BundleReceiver(context.store.files, staging, make_room)
        public = frozenset(name for name, registry in context.registries.items() if not registry.private)
        self._check = ImageCheck(context.store.files, context.store.index, self._receiver.by_digest, public)
        self._publisher = Publisher(cache, staging, self._receiver.by_digest)
        # Images whose tags wait for a verdict.
        self._unjudged: dict[ImageName, CheckedImage] = {}

    @property
    def bytes_stored(self) -> int:
        """The bytes that the images have added to the store."""
        return self._publisher.stored

    @property
    def bytes_held(self) -> int:
        """The bytes of the bundle that the store had already."""
        return self._receiver.held

    async def feed(self, data: bytes) -> None:
        """Receive the next bytes; raises like `BundleReceiver.feed`."""
        await in_thread(self._executor, self._receiver.feed, data)

    async def finish(self) -> list[ImportedImage]:
        """Make the images visible that are whole; returns what has become of each, in the order of the bundle.

        Raises:
            InvalidBundle: the bundle is cut, or names no image.
        """
        await in_thread(self._executor, self._receiver.close)
        images = await in_thread(self._executor, read_images, self._receiver.documents)
        names = _names(images, self._name)
        # Signatures and referrers after what they are about.
        order = sorted(range(len(images)), key=lambda at: images[at].name.is_attached)
        done = {at: await self._import(images[at], names[at]) for at in order}
        return [await self._tag_trusted(names[at], done[at]) for at in range(len(images))]

    async def close(self) -> None:
        """Remove what has not become visible."""
        await in_thread(self._executor, self._receiver.abort)
        await in_thread(self._executor, self._staging.close)

    async def _import(self, image: BundledImage, name: ImageName | str) -> ImportedImage:
        """Import one image; a failure is a result."""
        digest = image.content.digest if isinstance(image.content, Descriptor) else None
        shown = str(name) if isinstance(name, ImageName) else _shown(image)
        try:
            if not isinstance(name, ImageName):
                raise ImageRefused(name)
            return await self._publish(image, name)
        except (MirrorError, InvalidInput) as error:
            return ImportedImage(shown, digest, "refused", cause=str(error), attached=image.name.is_attached)

    async def _publish(self, image: BundledImage, name: ImageName) -> ImportedImage:
        repository, cache = name.repository, self._cache
        cache.context.registry(repository)
        await cache.pull_policy.check(repository, name.tag or name.reference)
        descriptor, note = image.content, None
        if isinstance(descriptor, DockerImage):
            descriptor, note = await in_thread(self._executor, self._make_manifest, descriptor), NOTE
        cache.pull_policy.check_content(repository, descriptor.digest)
        if name.digest not in (None, descriptor.digest):
            raise ImageRefused(f"its name says {name.digest}, and the bundle has {descriptor.digest}")
        checked = await in_thread(self._executor, self._check.check, descriptor, repository)
        if image.name.is_attached:
            self._require_subject(name, checked)
        if cache.trust is not None and not image.name.is_attached:
            # Its signatures come after it.
            self._unjudged[name] = checked
        published = await self._publisher.publish(replace(name, tag=None) if name in self._unjudged else name, checked)
        await self._publisher.attach(repository, checked)
        return ImportedImage(
            str(name),
            descriptor.digest,
            published.result,
            published.old,
            note=note,
            platforms=tuple(checked.platforms),
            left_out=tuple(checked.left_out),
            attached=image.name.is_attached,
        )

    async def _tag_trusted(self, name: ImageName | str, image: ImportedImage) -> ImportedImage:
        """Have the tag of an image name it, if the image was stored before its signatures and they count."""
        trust, checked = self._cache.trust, self._unjudged.get(name) if isinstance(name, ImageName) else None
        if trust is None or checked is None or not isinstance(name, ImageName) or image.result == "refused":
            return image
        try:
            await trust.require_manifest(name.repository, name.tag or name.reference, checked.root.digest)
            published = await self._publisher.switch(name, checked)
        except (MirrorError, InvalidInput) as error:
            return replace(image, result="refused", cause=str(error), platforms=(), left_out=())
        return image if name.tag is None else replace(image, result=published.result, old=published.old)

    def _require_subject(self, name: ImageName, checked: CheckedImage) -> None:
        subject = checked.subject if name.tag is None else subject_of(name.tag)
        if subject is not None and not self._cache.context.store.index.has_manifest(name.repository, subject):
            raise ImageRefused(f"what it is about, {subject}, is not held")

    def _make_manifest(self, image: DockerImage) -> Descriptor:
        """Make the manifest of an image, and stage it like the content of the bundle."""
        raw = ManifestMaker(self._receiver.find, self._check.open).make(image)
        digest = Digest.of(raw)
        if self._check.find(digest) is None:
            file = self._staging.create(len(raw), str(digest))
            with contextlib.closing(file):
                file.write(raw)
            self._receiver.by_digest[digest] = BundleContent(digest, len(raw), "its manifest", file.path)
        return Descriptor(digest, DOCKER_MANIFEST, len(raw))


def _names(images: list[BundledImage], given: ImageName | None) -> list[ImageName | str]:
    """Return the name of each image, or why it has none.

    Raises:
        InvalidBundle: a name is given, and it is not clear to which image.
    """
    names: list[ImageName | str] = [_own_name(image) for image in images]
    if given is not None:
        nameless = {at for at, name in enumerate(names) if isinstance(name, str)}
        images_proper = {at for at, image in enumerate(images) if not image.name.is_attached}
        wanted = nameless or images_proper
        if len({images[at].content for at in wanted}) != 1:
            raise InvalidBundle(f"it has {len(wanted)} images that could be {given}")
        for at, image in enumerate(images):
            if at in wanted:
                names[at] = named_as(given, image.name)
            elif images_proper <= wanted:
                names[at] = _moved(names[at], given)
    return _unambiguous(images, names)


def _moved(name: ImageName | str, given: ImageName) -> ImageName | str:
    """Return the name of a signature or referrer in the repository that the image got."""
    return name if isinstance(name, str) else ImageName(given.repository, name.tag, name.digest)


def _own_name(image: BundledImage) -> ImageName | str:
    if image.problem is not None:
        return image.problem
    if image.name.image is None:
        return "it has no name in the bundle; --as NAME (?as=NAME) gives it one"
    name = image.name.image
    return name if name.tag or name.digest else ImageName(name.repository, LATEST, None)


def _unambiguous(images: list[BundledImage], names: list[ImageName | str]) -> list[ImageName | str]:
    """Refuse names that two different images have."""
    contents: dict[str, set[Descriptor | DockerImage]] = {}
    for image, name in zip(images, names, strict=True):
        if isinstance(name, ImageName):
            contents.setdefault(str(name), set()).add(image.content)
    doubtful = {name for name, found in contents.items() if len(found) > 1}
    return ["the bundle has two images of this name" if str(name) in doubtful else name for name in names]


def _shown(image: BundledImage) -> str:
    if image.name.image is not None:
        return str(image.name.image)
    return str(image.content.digest) if isinstance(image.content, Descriptor) else image.content.config
