"""One import of a bundle. Imported with the first one."""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from mirror.aio import in_thread
from mirror.cache.cache import Cache
from mirror.core.names import ImageName
from mirror.storage.staging import Staging
from mirror.transfer.documents import read_images
from mirror.transfer.image_importer import Entry, ImageImporter, ImportedImage
from mirror.transfer.image_names import image_names
from mirror.transfer.receiver import BundleReceiver

_ROOM_TIMEOUT_S: Final = 30.0


class BundleImport:
    """Receives a bundle, and then makes its images visible.

    Args:
        executor: one thread, which does what blocks.
        name: the name of an image that has none in the bundle.
    """

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

    @property
    def images(self) -> list[ImportedImage]:
        """What has become of the images so far, in the order of the bundle."""
        return self._importer.results

    async def feed(self, data: bytes) -> None:
        """Receive the next bytes; raises like `BundleReceiver.feed`."""
        await in_thread(self._executor, self._receiver.feed, data)

    async def finish(self) -> None:
        """Make the images visible that are whole; `images` says what has become of each.

        Raises:
            InvalidBundle: the bundle is cut, or names no image.
        """
        await in_thread(self._executor, self._receiver.close)
        images = await in_thread(self._executor, read_images, self._receiver.documents)
        names = image_names(images, self._name)
        await self._importer.run([Entry(image, name) for image, name in zip(images, names, strict=True)])

    async def close(self) -> None:
        """End what the thread is doing, and remove what has not become visible."""
        self._receiver.stop()
        await in_thread(self._executor, self._receiver.abort)
        await in_thread(self._executor, self._staging.close)
