"""What crashes and abandoned downloads leave behind. Blocks; belongs in a thread."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.eviction import Partials, eviction_key
from mirror.core.names import Repository
from mirror.download.partial import Partial
from mirror.errors import StorageError
from mirror.storage.blobs import BlobFiles
from mirror.storage.database import superseded
from mirror.storage.images import record_parts
from mirror.storage.index import Index
from mirror.storage.layout import Layout
from mirror.storage.space_quota import on_disk

log = structlog.get_logger(__name__)

# Seconds without a write after which a partial blob that nobody fills is given up: at once if its room is wanted, or for good.
_IDLE = 3600.0
_ABANDONED = 86400.0
_TEMPORARY = 3600.0
_FORGOTTEN = 86400.0
_SET_ASIDE = 7 * 86400.0
# The pause after a few hundred rows of the index: requests come first.
_BREATH_S = 0.005


@dataclass(frozen=True, slots=True)
class PartialFile:
    """A blob in the making, as the file system lists it.

    Attributes:
        size: bytes of the whole; it may be sparse.
        written: seconds since the epoch.
    """

    digest: Digest
    size: int
    written: float


class Leftovers:
    """Finds and clears what nobody needs any more.

    Args:
        clock: seconds since the epoch, to judge the age of files by.
    """

    def __init__(self, layout: Layout, files: BlobFiles, index: Index, clock: Callable[[], float] = time.time) -> None:
        self._layout = layout
        self._files = files
        self._index = index
        self._clock = clock
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End what is under way soon."""
        self._stopping.set()

    def clear(self) -> None:
        """Clear everything whose time has come."""
        now, began = self._clock(), time.monotonic()
        for partial in self.partials():
            # Nor is there any use in one that a crash has left of a blob that is held, or before anything came.
            if now - partial.written > _ABANDONED or not partial.size or self._files.size(partial.digest) is not None:
                self._discard(partial.digest)
        self._clear_maps()
        for path in _older(Path(self._layout.temporary), now - _TEMPORARY):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
        damaged = superseded(self._layout.index)
        for path in _older(Path(self._layout.index), now - _SET_ASIDE):
            if str(path) in damaged or ".damaged-" in path.name:
                shutil.rmtree(path, ignore_errors=True)
        self._forget(now)
        # Rules about digests, and rights, go by what manifests name.
        record_parts(self._files, self._index, self._pause)
        log.info("leftovers_cleared", seconds=round(time.monotonic() - began, 3))

    def _forget(self, now: float) -> None:
        """Forget what is known about content that is gone."""
        tags = self._index.tags.drop(self._is_around, now - _FORGOTTEN, self._pause)
        manifests = self._index.drop_manifests(self._is_around, self._pause)
        self._index.attachments.drop(self._is_held, now - _FORGOTTEN, self._pause)
        self._index.parts.drop(self._is_around, self._pause)
        grants = self._index.grants.drop(self._is_around, self._pause)
        if tags or manifests or grants:
            log.info("rows_dropped", tags=tags, manifests=manifests, grants=grants)

    def _pause(self) -> bool:
        """Yield to requests between two looks at the index; True once this is to stop."""
        return self._stopping.wait(_BREATH_S)

    def partials(self) -> Iterator[PartialFile]:
        """Every blob in the making."""
        for algorithm in ("sha256", "sha512"):
            for path in _older(Path(self._layout.root, "partial", algorithm), float("inf")):
                with contextlib.suppress(OSError, InvalidInput):
                    state = path.stat()
                    yield PartialFile(Digest.parse(f"{algorithm}:{path.name}"), state.st_size, state.st_mtime)

    def clear_idle_partials(self, needed: int) -> int:
        """Give up partial blobs that nobody has filled for a while, oldest first, up to `needed` bytes; returns the bytes."""
        idle = [partial for partial in self.partials() if self._clock() - partial.written > _IDLE]
        freed = 0
        for partial in sorted(idle, key=lambda partial: eviction_key(partial.written, partial.size, pinned=False)):
            if freed >= needed:
                break
            if self._discard(partial.digest):
                freed += on_disk(partial.size)
        return freed

    def reserved(self) -> Partials:
        """Bytes that partial blobs have reserved, as whole blocks."""
        idle = busy = 0
        for partial in self.partials():
            if self._clock() - partial.written > _IDLE:
                idle += on_disk(partial.size)
            else:
                busy += on_disk(partial.size)
        return Partials(idle, busy)

    def _discard(self, digest: Digest) -> bool:
        """Throw a partial blob away, unless somebody is at it."""
        try:
            partial = Partial(self._layout, self._files.quota, digest)
        except StorageError:
            return False
        with contextlib.closing(partial):
            if not (partial.try_acquire_driver() and partial.is_current()):
                return False
            partial.discard()
            log.info("partial_given_up", digest=str(digest))
            return True

    def _clear_maps(self) -> None:
        """Remove maps whose blob was committed or thrown away in the very moment of a crash."""
        for algorithm in ("sha256", "sha512"):
            for path in _older(Path(self._layout.root, "partial", algorithm), self._clock() - _TEMPORARY):
                if path.suffix == ".map" and not path.with_suffix("").exists():
                    with contextlib.suppress(OSError):
                        path.unlink()

    def _is_held(self, repository: Repository, digest: Digest) -> bool:
        """Whether a repository holds a manifest. That another one does is no reason to keep what clients' questions left here."""
        return self._is_around(digest) and self._index.manifests.get(repository, digest) is not None

    def _is_around(self, digest: Digest) -> bool:
        return self._files.size(digest) is not None or Path(self._layout.partial(digest)).exists()


def _older(directory: Path, than: float) -> Iterator[Path]:
    """The entries of a directory that were changed before a time."""
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < than:
                    yield path
