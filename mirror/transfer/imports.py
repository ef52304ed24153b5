"""Imports of bundles into the store of a running mirror."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Final

from mirror.aio import opened_in_thread, uninterrupted
from mirror.cache.cache import Cache
from mirror.core.names import ImageName
from mirror.errors import MirrorError
from mirror.storage.staging import Staging

if TYPE_CHECKING:
    from mirror.transfer.bundle_import import BundleImport

MAX_IMPORTS: Final = 2
"""Imports of one process at a time."""


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
        from mirror.transfer.bundle_import import BundleImport  # noqa: PLC0415 - no start has to wait for it

        self._running += 1
        cache, executor = self._cache, ThreadPoolExecutor(1, "import")
        try:
            store = cache.context.store
            with cache.context.in_use.hold():
                staging = await opened_in_thread(executor, partial(Staging, store.layout, store.quota), Staging.close)
                importing = BundleImport(cache, staging, executor, named)
                try:
                    yield importing
                finally:
                    await uninterrupted(importing.close())
        finally:
            executor.shutdown(wait=False)
            self._running -= 1
