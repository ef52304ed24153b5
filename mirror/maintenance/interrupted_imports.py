"""Removes what interrupted imports have stored. Blocks; belongs in a thread."""

from __future__ import annotations

import contextlib

import structlog

from mirror.maintenance.purge import Purge
from mirror.storage.staging import left_behind
from mirror.storage.store import Store

log = structlog.get_logger(__name__)


class InterruptedImports:
    """Finds imports whose process was killed, or that have failed while their images became visible."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._purge = Purge(store.files, store.index, store.generation)

    def clear(self) -> None:
        """Remove their files, and their images without a tag; whole images stay.

        Raises:
            StorageError: it is unknown what other images need. The next call tries again.
        """
        for found in left_behind(self._store.layout):
            with contextlib.closing(found):
                blobs = sum(self._purge.withdraw(pending) for pending in found.announced())
                files = found.remove(self._store.quota)
            log.info("interrupted_import_cleared", files=files, blobs=blobs)
