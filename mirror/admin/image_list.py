"""The list of cached images, in pages."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mirror.admin.operations import AdminOperations
from mirror.admin.registry_storage import registry_totals
from mirror.core.names import ImagePattern
from mirror.core.paging import page
from mirror.storage.images import Image

# A client has so much time to ask for the next page before the list is made again.
_KEPT_S = 60.0


class ImageList:
    """Lists images. All pages of one walk come from one list: to make it takes seconds where there are many images.

    One thread makes the lists, one at a time, so that they leave the other threads to health checks and metrics.

    Args:
        operations: of the store.
    """

    def __init__(self, operations: AdminOperations) -> None:
        self._operations = operations
        self._executor = ThreadPoolExecutor(1, "image-list")
        self._kept: tuple[ImagePattern | None, dict[str, Image], list[dict[str, Any]]] | None = None
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
        names, more = page(list(found), n, last)
        self._kept = (pattern, found, registries) if more else None
        images = [_describe(name, found[name]) for name in names]
        return {"images": images, "next": names[-1] if more else None, "registries": registries}

    def _list(self, pattern: ImagePattern | None, *, is_first: bool) -> tuple[dict[str, Image], list[dict[str, Any]]]:
        kept = self._kept
        if kept is not None and kept[0] == pattern and not is_first:
            return kept[1], kept[2]
        found = {image.name: image for image in sorted(self._operations.images(pattern), key=lambda image: image.name)}
        return found, registry_totals(found.values(), self._operations.registry_storage.figures())

    def _forget(self) -> None:
        self._kept = self._expiry = None


def _describe(name: str, image: Image) -> dict[str, Any]:
    return {
        "name": name,
        "registry": image.repository.registry,
        "repository": image.repository.path,
        "tag": str(image.tag) if image.tag is not None else None,
        "digest": str(image.digest),
        "bytes": image.size,
        "pulled": image.pulled,
        "complete": image.complete,
    }
