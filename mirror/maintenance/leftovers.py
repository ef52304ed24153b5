"""Removes what crashes and abandoned downloads leave behind. Blocks; belongs in a thread."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import structlog

from mirror.core.algorithms import HEX_DIGITS
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.eviction import Partials
from mirror.core.eviction_order import eviction_key
from mirror.core.names import Repository, Tag
from mirror.download.partial import Partial
from mirror.errors import StorageError
from mirror.storage.account import on_disk
from mirror.storage.blobs import BlobFiles
from mirror.storage.database import superseded
from mirror.storage.images import record_parts
from mirror.storage.index import Index
from mirror.storage.layout import Layout
from mirror.storage.owner import owner_of
from mirror.storage.staging import staged_files

log = structlog.get_logger(__name__)

# A partial blob without a writer is discarded this long after its last write: if its space is needed, or in any case.
_IDLE_S = 3600.0
_ABANDONED_S = 86400.0
_TEMPORARY_S = 3600.0
_STALE_ROW_S = 86400.0
_DAMAGED_INDEX_S = 7 * 86400.0
# The pause after a few hundred rows of the index: requests come first.
_PAUSE_S = 0.005


@dataclass(frozen=True, slots=True)
class PartialFile:
    """A partial blob as the file system lists it.

    Attributes:
        size: bytes of the whole blob; the file may be sparse.
        written: last write, in seconds since the epoch.
        owner: the registry that it counts for; None if it counts for none.
    """

    digest: Digest
    size: int
    written: float
    owner: str | None


class Leftovers:
    """Finds and removes files and rows that nothing needs.

    Args:
        clock: seconds since the epoch, for the age of files.

    Attributes:
        keeps: whether what a tag names is never forgotten, although its content is gone.
    """

    def __init__(self, layout: Layout, files: BlobFiles, index: Index, clock: Callable[[], float] = time.time) -> None:
        self._layout = layout
        self._files = files
        self._index = index
        self._clock = clock
        self.keeps: Callable[[Repository, Tag], bool] = lambda *_: False
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End running work soon."""
        self._stopping.set()

    def clear(self) -> None:
        """Remove everything that is old enough."""
        now, began = self._clock(), time.monotonic()
        for partial in self.partials():
            # A crash may also leave a partial file of a cached blob, or an empty one.
            if now - partial.written > _ABANDONED_S or not partial.size or self._files.size(partial.digest) is not None:
                self._discard(partial.digest)
        self._clear_maps()
        for path in _older(Path(self._layout.temporary), now - _TEMPORARY_S):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    path.unlink()
        damaged = superseded(self._layout.index)
        for path in _older(Path(self._layout.index), now - _DAMAGED_INDEX_S):
            if str(path) in damaged or ".damaged-" in path.name:
                shutil.rmtree(path, ignore_errors=True)
        self._delete_stale_rows(now)
        # Rules about digests and grants depend on the recorded parts.
        record_parts(self._files, self._index, self.pause)
        log.info("leftovers_cleared", seconds=round(time.monotonic() - began, 3))

    def _delete_stale_rows(self, now: float) -> None:
        """Delete rows about content that is gone."""
        tags = self._index.tags.drop(self._is_present, now - _STALE_ROW_S, self.pause, self.keeps)
        manifests = self._index.drop_manifests(self._is_present, self.pause)
        self._index.attachments.drop(self._is_held, now - _STALE_ROW_S, self.pause)
        self._index.parts.drop(self._is_present, self.pause)
        grants = self._index.grants.drop(self._is_present, self.pause)
        if tags or manifests or grants:
            log.info("rows_dropped", tags=tags, manifests=manifests, grants=grants)

    def pause(self) -> bool:
        """Yield to requests between a few hundred rows of the index or files; True once this is to stop."""
        return self._stopping.wait(_PAUSE_S)

    def partials(self) -> Iterator[PartialFile]:
        """Yield every partial blob."""
        for algorithm in HEX_DIGITS:
            for path in _older(Path(self._layout.root, "partial", algorithm), float("inf")):
                with contextlib.suppress(OSError, InvalidInput):
                    state = path.stat()
                    digest = Digest.parse(f"{algorithm}:{path.name}")
                    yield PartialFile(digest, state.st_size, state.st_mtime, owner_of(str(path)))

    def _partials_of(self, registry: str | None) -> Iterator[PartialFile]:
        return (partial for partial in self.partials() if registry in (None, partial.owner))

    def clear_idle_partials(self, needed: int, registry: str | None = None) -> int:
        """Discard idle partial blobs in the order of eviction until `needed` bytes are free; returns the freed bytes.

        Args:
            registry: only those that count for this registry; None for all.
        """
        idle = [partial for partial in self._partials_of(registry) if self._clock() - partial.written > _IDLE_S]
        freed = 0
        for partial in sorted(idle, key=lambda partial: eviction_key(partial.written, partial.size, pinned=False)):
            if freed >= needed:
                break
            if self._discard(partial.digest):
                freed += on_disk(partial.size)
        return freed

    def reserved(self, registry: str | None = None) -> Partials:
        """Return the bytes that the partial blobs of a registry, or of all, have reserved, in whole blocks."""
        idle = busy = 0
        for partial in self._partials_of(registry):
            if self._clock() - partial.written > _IDLE_S:
                idle += on_disk(partial.size)
            else:
                busy += on_disk(partial.size)
        # An import needs its files until its end; they count for no registry before that.
        busy += 0 if registry is not None else sum(on_disk(staged.size) for staged in staged_files(self._layout))
        return Partials(idle, busy)

    def _discard(self, digest: Digest) -> bool:
        """Discard a partial blob unless it has a driver."""
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
        """Remove maps of blobs that were committed or discarded when a crash came."""
        for algorithm in HEX_DIGITS:
            for path in _older(Path(self._layout.root, "partial", algorithm), self._clock() - _TEMPORARY_S):
                if path.suffix == ".map" and not path.with_suffix("").exists():
                    with contextlib.suppress(OSError):
                        path.unlink()

    def _is_held(self, repository: Repository, digest: Digest) -> bool:
        """Whether a repository holds a manifest; another holder does not justify the rows that requests have left here."""
        return self._is_present(digest) and self._index.manifests.get(repository, digest) is not None

    def _is_present(self, digest: Digest) -> bool:
        return self._files.size(digest) is not None or Path(self._layout.partial(digest)).exists()


def _older(directory: Path, than: float) -> Iterator[Path]:
    """Yield the entries of a directory that were changed before a time."""
    with contextlib.suppress(OSError):
        for path in directory.iterdir():
            with contextlib.suppress(OSError):
                if path.stat().st_mtime < than:
                    yield path
