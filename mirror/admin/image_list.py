"""The list of cached images, in pages."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mirror.admin.operations import AdminOperations
from mirror.admin.registry_storage import RegistryTotals
from mirror.core.names import ImagePattern
from mirror.core.paging import page
from mirror.storage.images import Image

# A client has so much time to ask for the next page before the list is made again.
_KEPT_S = 60.0


class ImageList:
    """Lists images. All pages of one walk come from one list: to make it takes seconds where there are many images.

    The list has names only; what is told of an image is read for its page. One thread makes the lists, one at a time, so that
    they leave the other threads to health checks and metrics.

    Args:
        operations: of the store.
    """

    def __init__(self, operations: AdminOperations) -> None:
        self._operations = operations
        self._executor = ThreadPoolExecutor(1, "image-list")
        self._kept: tuple[ImagePattern | None, list[str], list[dict[str, Any]]] | None = None
        self._expiry: asyncio.TimerHandle | None = None

    async def page(self, pattern: ImagePattern | None, n: str | None, last: str | None) -> dict[str, Any]:
        """Return the images after the name `last`, at most `n`; the totals are those of the whole list. Raises InvalidPage."""
        answer = await asyncio.get_running_loop().run_in_executor(self._executor, self._page, pattern, n, last)
        if self._expiry is not None:
            self._expiry.cancel()
        self._expiry = asyncio.get_running_loop().call_later(_KEPT_S, self._forget)
        return answer

    def close(self) -> None:
        """Drop what waits for the thread."""
        if self._expiry is not None:
            self._expiry.cancel()
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _page(self, pattern: ImagePattern | None, n: str | None, last: str | None) -> dict[str, Any]:
        found, registries = self._list(pattern, is_first=last is None)
        names, more = page(found, n, last)
        self._kept = (pattern, found, registries) if more else None
        images = [_describe(image) for image in self._operations.named_images(names)]
        return {"images": images, "next": names[-1] if more else None, "registries": registries}

    def _list(self, pattern: ImagePattern | None, *, is_first: bool) -> tuple[list[str], list[dict[str, Any]]]:
        kept = self._kept
        if kept is not None and kept[0] == pattern and not is_first:
            return kept[1], kept[2]
        counted = RegistryTotals()
        names = sorted(image.name for image in counted.counting(self._operations.images(pattern)))
        return names, counted.totals(self._operations.registry_storage.figures())

    def _forget(self) -> None:
        self._kept = self._expiry = None


def _describe(image: Image) -> dict[str, Any]:
    return {
        "name": image.name,
        "registry": image.repository.registry,
        "repository": image.repository.path,
        "tag": str(image.tag) if image.tag is not None else None,
        "digest": str(image.digest),
        "bytes": image.size,
        "pulled": image.pulled,
        "complete": image.complete,
    }
