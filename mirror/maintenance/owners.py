"""Counts blobs that count for no registry, as an earlier version has stored them, for one. Blocks; belongs in a thread."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable

import structlog

from mirror.core.digest import Digest
from mirror.errors import StorageError
from mirror.storage.blobs import BlobFiles
from mirror.storage.index import Index
from mirror.storage.layout import Layout
from mirror.storage.owner import owner_of
from mirror.storage.rows import paused

log = structlog.get_logger(__name__)


def assign_owners(layout: Layout, files: BlobFiles, index: Index, pause: Callable[[], bool] = lambda: False) -> int:
    """Count each such blob for the first configured registry whose upstream has granted it; returns how many are left.

    What no registry is known to have been granted stays as it is, and is evicted for the bounds of the store only.

    Args:
        pause: called after every few hundred blobs; True ends the pass.
    """
    registries, assigned, left = sorted(files.quota.limits), 0, 0
    for file in paused(files.walk(), pause):
        path = layout.blob(file.digest)
        if owner_of(path) is not None:
            continue
        owner = _granted_to(index, registries, file.digest)
        if owner is None:
            left += 1
            continue
        # It may be gone by now.
        with contextlib.suppress(StorageError):
            files.quota.assign(path, file.size, 1, owner)
            assigned += 1
    if assigned:
        log.info("blobs_assigned", blobs=assigned)
    return left


def _granted_to(index: Index, registries: Iterable[str], digest: Digest) -> str | None:
    return next(
        (
            name
            for name in registries
            if index.grants.get("blob", name, digest) is not None or index.grants.get("manifest", name, digest) is not None
        ),
        None,
    )
