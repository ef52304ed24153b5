"""Cached blobs: files under the name of their digest, complete and verified, never changed.

A blob is cached if its file opens. An open file can be read to its end after it was unlinked. Only a regular file is a blob: a
directory, pipe, link or device in its place is not.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import FileIO

from mirror.core.algorithms import HEX_DIGITS
from mirror.core.digest import Digest
from mirror.core.errors import InvalidDigest
from mirror.errors import FlushFailed, StorageError
from mirror.storage.errors import storage_errors
from mirror.storage.layout import Layout
from mirror.storage.owner import owner_of, set_owner
from mirror.storage.page_cache import flush_directory, read_resident, resident_until
from mirror.storage.space_quota import SpaceQuota

_PIECE_BYTES = 1 << 20
# A link could lead out of the store, and opening a pipe would block.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# A time of use further in the future comes from a wrong clock.
_MAX_CLOCK_ERROR_S = 86400.0


@dataclass(frozen=True, slots=True)
class CachedBlob:
    """An open blob file. Close it when done; until then it can be read, also after it was unlinked.

    Attributes:
        file: the open file, unbuffered.
        size: bytes.
    """

    file: FileIO
    size: int

    def close(self) -> None:
        """Close the file."""
        self.file.close()


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A cached blob as the file system lists it.

    Attributes:
        size: bytes.
        used: last use, in seconds since the epoch.
    """

    digest: Digest
    size: int
    used: float


class BlobFiles:
    """The verified content of a store. Each method blocks for about one disk operation.

    Attributes:
        before_commit: called in a thread with each digest whose file is about to get its name.
        on_purged: called in a thread with all that purged images needed, cached or not, also if others need it.
    """

    def __init__(self, layout: Layout, quota: SpaceQuota) -> None:
        self.before_commit: Callable[[Digest], None] = lambda _: None
        self.on_purged: Callable[[Iterable[Digest]], None] = lambda _: None
        self.quota = quota
        self._layout = layout

    def open(self, digest: Digest) -> CachedBlob | None:
        """Open a blob; None if it is not cached.

        Raises:
            StorageError: no descriptor is left to find out.
        """
        try:
            descriptor = os.open(self._layout.blob(digest), _READ)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise StorageError(f"opening {digest}: {error.strerror}", "io") from error
            return None
        state = os.fstat(descriptor)
        if not stat.S_ISREG(state.st_mode):
            os.close(descriptor)
            return None
        return CachedBlob(FileIO(descriptor), state.st_size)

    def read_resident(self, digest: Digest, size: int, start: int, stop: int) -> bytes | None:
        """Read a part of a held blob of `size` bytes if its bytes are in the page cache; else None."""
        try:
            descriptor = os.open(self._layout.blob(digest), _READ)
        except OSError:
            return None
        try:
            state = os.fstat(descriptor)
            if state.st_size != size or not stat.S_ISREG(state.st_mode):
                return None
            return read_resident(descriptor, start, stop)
        finally:
            os.close(descriptor)

    def size(self, digest: Digest) -> int | None:
        """Return the bytes of a blob, or None."""
        state = self._state(digest)
        return None if state is None else state.st_size

    def size_if_same(self, digest: Digest, descriptor: int) -> int | None:
        """Return the bytes of a blob if its file is the one that is open as `descriptor`, else None."""
        mine, held = os.fstat(descriptor), self._state(digest)
        return held.st_size if held is not None and (held.st_dev, held.st_ino) == (mine.st_dev, mine.st_ino) else None

    def read(self, digest: Digest, limit: int) -> bytes | None:
        """Return a small blob; None if it is not cached or longer than `limit` bytes."""
        held = self.open(digest)
        if held is None:
            return None
        with held.file as file:
            return file.read(held.size) if held.size <= limit else None

    def put(self, digest: Digest, data: bytes, owner: str | None = None) -> None:
        """Store a small blob whose digest the caller has verified; durable on return. A cached blob of that size stays.

        Args:
            owner: the registry that it counts for.

        Raises:
            StorageError: it could not be stored.
        """
        if self.size(digest) == len(data):
            return
        self.quota.claim(len(data), str(digest), owner)
        try:
            self._put(digest, data, owner)
        except StorageError:
            self.quota.release(len(data), owner=owner)
            raise

    def _put(self, digest: Digest, data: bytes, owner: str | None) -> None:
        with storage_errors(f"storing {digest}"):
            descriptor, name = tempfile.mkstemp(dir=self._layout.temporary)
            try:
                with open(descriptor, "wb") as file:
                    if owner is not None and self.quota.keeps_owners:
                        set_owner(descriptor, owner)
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                self._rename(name, digest, owner)
            except (OSError, StorageError):
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise

    def commit(self, path: str, descriptor: int, digest: Digest) -> None:
        """Make a verified file of this file system the cached blob: flush, rename, flush the directory.

        The writer has reserved its space.

        Raises:
            FlushFailed: it could not be made durable. The kernel reports that once only and may have dropped the pages
                (fsync(2)), so another attempt with the same file would seem to succeed.
            StorageError: it could not be renamed.
        """
        try:
            with storage_errors(f"flushing {digest}"):
                os.fsync(descriptor)
        except StorageError as error:
            raise FlushFailed(str(error), error.reason) from error
        with storage_errors(f"committing {digest}"):
            self._rename(path, digest, owner_of(descriptor))

    def delete(self, digest: Digest) -> int:
        """Remove a blob; returns the bytes of its file, 0 if it was not cached. Open readers finish."""
        size, path = self.size(digest), self._layout.blob(digest)
        if size is None:
            return 0
        owner = owner_of(path)
        try:
            os.unlink(path)
        except OSError:
            return 0
        self.quota.release(size, 1, owner)
        return size

    def used(self, digest: Digest) -> float | None:
        """Return the last use of a blob, in seconds since the epoch; None if it is not cached."""
        state = self._state(digest)
        return None if state is None else state.st_mtime

    def touch(self, digest: Digest, when: float) -> None:
        """Record a use of a blob, in seconds since the epoch, as the file's modification time.

        An earlier use than the recorded one changes nothing, unless that one comes from a wrong clock.
        """
        used = self.used(digest)
        if used is None or when <= used < when + _MAX_CLOCK_ERROR_S:
            return
        with contextlib.suppress(OSError):
            os.utime(self._layout.blob(digest), (when, when))

    def walk(self, shard: str = "*") -> Iterator[CachedFile]:
        """Yield every cached blob, in no order; or those of one shard, the first two digits of the encoded digest.

        Blobs that are added or removed meanwhile may or may not be among them.
        """
        for algorithm in HEX_DIGITS:
            base = f"{self._layout.root}/blobs/{algorithm}"
            for directory in sorted(_names(base)) if shard == "*" else [shard]:
                yield from _files(f"{base}/{directory}", algorithm)

    def _state(self, digest: Digest) -> os.stat_result | None:
        try:
            state = os.lstat(self._layout.blob(digest))
        except OSError:
            return None
        return state if stat.S_ISREG(state.st_mode) else None

    def _rename(self, path: str, digest: Digest, owner: str | None) -> None:
        target = self._layout.blob(digest)
        directory = os.path.dirname(target)
        if not os.path.isdir(directory):
            os.makedirs(directory, mode=0o700, exist_ok=True)
            flush_directory(os.path.dirname(directory))

        self.before_commit(digest)

        def move() -> tuple[int, str | None] | None:
            size = self.size(digest)
            replaced = None if size is None else (size, owner_of(target))
            with storage_errors(f"storing {digest}"):
                try:
                    os.rename(path, target)
                except IsADirectoryError:
                    # A rename replaces everything but a directory, which is deleted later with other temporary files.
                    os.rename(target, f"{self._layout.temporary}/in-the-way-{uuid.uuid4().hex}")
                    os.rename(path, target)
            return replaced

        self.quota.commit(move, owner)
        flush_directory(directory)


def is_intact(
    files: BlobFiles, digest: Digest, paced: Callable[[int], None] = lambda _: None, *, keep_cached: bool = False
) -> bool | None:
    """Whether a cached blob matches its digest; None if it is not cached. Blocks until the whole is read.

    Args:
        paced: called with the bytes of each piece.
        keep_cached: leave the blob in the page cache, for it is being served; otherwise only what was there before stays.

    Raises:
        OSError: it cannot be read.
    """
    held = files.open(digest)
    if held is None:
        return None
    hasher = digest.hasher()
    with held.file as file:
        keep_cached = keep_cached or resident_until(file.fileno(), 0, held.size) == held.size
        while piece := file.read(_PIECE_BYTES):
            hasher.update(piece)
            paced(len(piece))
        if not keep_cached:
            # It will hardly be read again soon, so the memory is better used otherwise. A sandbox may refuse the advice.
            with contextlib.suppress(OSError):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return bool(hasher.hexdigest() == digest.encoded)


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _files(directory: str, algorithm: str) -> Iterator[CachedFile]:
    try:
        entries = os.scandir(directory)
    except OSError:
        return
    with entries:
        for entry in entries:
            with contextlib.suppress(OSError, InvalidDigest):
                state = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(state.st_mode):
                    yield CachedFile(Digest.parse(f"{algorithm}:{entry.name}"), state.st_size, state.st_mtime)
