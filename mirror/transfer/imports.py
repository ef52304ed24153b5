"""Imports of bundles into the store of a running mirror."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from mirror.aio import in_thread, uninterrupted
from mirror.cache.cache import Cache
from mirror.core.names import ImageName
from mirror.errors import MirrorError
from mirror.storage.staging import Staging
from mirror.transfer.documents import read_images
from mirror.transfer.image_importer import Entry, ImageImporter, ImportedImage
from mirror.transfer.image_names import image_names
from mirror.transfer.receiver import BundleReceiver

MAX_IMPORTS: Final = 2
"""Imports of one process at a time."""

_ROOM_TIMEOUT_S: Final = 30.0


class TooManyImports(MirrorError):
    """As many imports run as one process takes."""


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
        """Import a bundle inside the context; its files are removed if `finish` is not reached.

        Args:
            name: the name of an image that has none in the bundle; None for none.

        Raises:
            InvalidInput: the name is none.
            TooManyImports: see that.
            StorageError: the store cannot be written.
        """
        named = None if name is None else ImageName.parse(name, self._default_registry)
        if self._running >= MAX_IMPORTS:
            raise TooManyImports(f"{MAX_IMPORTS} imports are running; try again when one of them has ended")
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
        self._staging = staging
        self._executor = executor
        self._name = name
        loop, context = asyncio.get_running_loop(), cache.context

        def make_room(size: int) -> None:
            made = asyncio.run_coroutine_threadsafe(context.make_room(size, None), loop)
            with contextlib.suppress(TimeoutError):
                made.result(_ROOM_TIMEOUT_S)

        self._receiver = BundleReceiver(context.store.files, staging, make_room)
        self._importer = ImageImporter(cache, staging, self._receiver, executor)

    @property
    def bytes_stored(self) -> int:
        """The bytes that the images have added to the store."""
        return self._importer.stored

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
        names = image_names(images, self._name)
        return await self._importer.run([Entry(image, name) for image, name in zip(images, names, strict=True)])

    async def close(self) -> None:
        """Remove what has not become visible."""
        await in_thread(self._executor, self._receiver.abort)
        await in_thread(self._executor, self._staging.close)
