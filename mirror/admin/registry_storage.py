"""What each registry takes in the store, and may take."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from mirror.metrics import Metrics
from mirror.storage.images import Image
from mirror.storage.space_quota import SpaceQuota


class RegistryStorage:
    """The figures of the configured registries. Each method blocks on a file for a moment.

    Raises:
        StorageError: from `figures`, if the account of the store cannot be read.
    """

    def __init__(self, quota: SpaceQuota, metrics: Metrics) -> None:
        self._quota = quota
        self._used = metrics.registry_storage_bytes
        self._limits = metrics.registry_storage_limit_bytes
        self._named: set[str] = set()

    def figures(self) -> list[dict[str, Any]]:
        """Return bytes, blobs and limit of each registry; `max_size` is 0 without a limit."""
        account, limits = self._quota.mark(), self._quota.limits
        return [
            {
                "registry": name,
                "bytes": account.of(name).used,
                "blobs": account.of(name).blobs,
                "max_size": self._quota.limit_of(name),
            }
            for name in sorted(limits)
        ]

    def update_metrics(self) -> None:
        """Set the metrics of each registry, and remove those of registries that are not configured any more."""
        figures = self.figures()
        named = {one["registry"] for one in figures}
        for name in self._named - named:
            # Two threads may remove it at the same time.
            with contextlib.suppress(KeyError):
                self._used.remove(name)
                self._limits.remove(name)
        self._named = named
        for one in figures:
            self._used.labels(one["registry"]).set(one["bytes"])
            self._limits.labels(one["registry"]).set(one["max_size"])


class RegistryTotals:
    """The totals of each registry, counted while a list of images is made."""

    def __init__(self) -> None:
        self._counts = Counter[str]()
        self._sizes = Counter[str]()

    def counting(self, images: Iterable[Image]) -> Iterator[Image]:
        """Yield images, and count them."""
        for image in images:
            self._counts[image.repository.registry] += 1
            self._sizes[image.repository.registry] += image.size
            yield image

    def totals(self, registries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the totals of each registry: of the images, and `stored`, what it takes in the store.

        Args:
            registries: see `RegistryStorage.figures`.
        """
        stored = {one["registry"]: one for one in registries}
        return [
            {
                "registry": name,
                "images": self._counts[name],
                "bytes": self._sizes[name],
                "stored": stored.get(name, {}).get("bytes", 0),
                "max_size": stored.get(name, {}).get("max_size", 0),
            }
            for name in sorted({*stored, *self._counts})
        ]
