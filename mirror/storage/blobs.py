"""Held blobs: files under the name of their digest, complete and verified, never changed.

A blob is held if its file opens. The open file is the pin: whoever reads goes on reading after an unlink. What is no regular file
(a directory, pipe, link or device that somebody left in a blob's place) is no blob.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import FileIO

from mirror.core.digest import Digest
from mirror.core.errors import InvalidDigest
from mirror.errors import FlushFailed, StorageError
from mirror.storage.errors import storage_errors
from mirror.storage.layout import Layout
from mirror.storage.page_cache import read_resident
from mirror.storage.space_quota import SpaceQuota

_PIECE = 1 << 20
# A link could lead out of the store, and a pipe would be waited for.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# Seconds.
_WRONG_CLOCK = 86400.0


@dataclass(frozen=True, slots=True)
class CachedBlob:
    """An open blob file. Close it when done; until then it can be read whatever happens to its name.

    Attributes:
        file: the open file, unbuffered.
        size: bytes.
    """

    file: FileIO
    size: int

    def close(self) -> None:
        """Give the descriptor back."""
        self.file.close()


@dataclass(frozen=True, slots=True)
class CachedFile:
    """A held blob as the file system lists it.

    Attributes:
        size: bytes.
        used: when it was used last, in seconds since the epoch.
    """

    digest: Digest
    size: int
    used: float


class BlobFiles:
    """The verified content of a store. All methods block for about one disk operation."""

    def __init__(self, layout: Layout, quota: SpaceQuota) -> None:
        self.quota = quota
        self._layout = layout

    def open(self, digest: Digest) -> CachedBlob | None:
        """Open a held blob, or None.

        Raises:
            StorageError: it may be held, but this process has no descriptor left to find out.
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
        """Bytes of a held blob, or None."""
        state = self._state(digest)
        return None if state is None else state.st_size

    def size_if_same(self, digest: Digest, descriptor: int) -> int | None:
        """Bytes of a held blob if it is the very file that is open as `descriptor`, else None."""
        mine, held = os.fstat(descriptor), self._state(digest)
        return held.st_size if held is not None and (held.st_dev, held.st_ino) == (mine.st_dev, mine.st_ino) else None

    def read(self, digest: Digest, limit: int) -> bytes | None:
        """The whole of a small held blob, or None if it is not held or longer than `limit` bytes."""
        held = self.open(digest)
        if held is None:
            return None
        with held.file as file:
            return file.read(limit + 1)[: held.size] if held.size <= limit else None

    def put(self, digest: Digest, data: bytes) -> None:
        """Store a small blob whose digest the caller has verified; durable on return. One that is held stays.

        Raises:
            StorageError: it could not be stored.
        """
        if self.size(digest) == len(data):
            return
        self.quota.claim(len(data), str(digest))
        try:
            self._put(digest, data)
        except StorageError:
            self.quota.release(len(data))
            raise

    def _put(self, digest: Digest, data: bytes) -> None:
        with storage_errors(f"storing {digest}"):
            descriptor, name = tempfile.mkstemp(dir=self._layout.temporary)
            try:
                with open(descriptor, "wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                self._rename(name, digest)
            except (OSError, StorageError):
                with contextlib.suppress(OSError):
                    os.unlink(name)
                raise

    def adopt(self, path: str, descriptor: int, digest: Digest) -> None:
        """Make a verified file of this file system the held blob: flush, rename, flush the directory.

        The room that the file takes has been reserved by whoever wrote it.

        Raises:
            FlushFailed: it could not be made durable. The kernel tells that only once and may have dropped what it could not
                write (fsync(2)), so another attempt with the same file would seem to succeed.
            StorageError: it could not be renamed.
        """
        try:
            with storage_errors(f"flushing {digest}"):
                os.fsync(descriptor)
        except StorageError as error:
            raise FlushFailed(str(error), error.reason) from error
        with storage_errors(f"committing {digest}"):
            self._rename(path, digest)

    def delete(self, digest: Digest) -> int:
        """Remove a blob's name; returns the bytes of the file, 0 if it was not held. Open readers finish."""
        size = self.size(digest)
        if size is None:
            return 0
        try:
            os.unlink(self._layout.blob(digest))
        except OSError:
            return 0
        self.quota.release(size, blobs=1)
        return size

    def used(self, digest: Digest) -> float | None:
        """When a held blob was used last, in seconds since the epoch; None if it is not held."""
        state = self._state(digest)
        return None if state is None else state.st_mtime

    def touch(self, digest: Digest, when: float) -> None:
        """Note when a blob was used last, in seconds since the epoch; kept as the file's modification time.

        Of several notes the latest counts, but for one from so far ahead that a clock must have been wrong.
        """
        noted = self.used(digest)
        if noted is None or when <= noted < when + _WRONG_CLOCK:
            return
        with contextlib.suppress(OSError):
            os.utime(self._layout.blob(digest), (when, when))

    def walk(self, shard: str = "*") -> Iterator[CachedFile]:
        """Every held blob, in no order; or those of one shard, the first two digits of the encoded digest.

        Blobs that come or go meanwhile may or may not be there.
        """
        for algorithm in ("sha256", "sha512"):
            base = f"{self._layout.root}/blobs/{algorithm}"
            for directory in sorted(_names(base)) if shard == "*" else [shard]:
                yield from _files(f"{base}/{directory}", algorithm)

    def _state(self, digest: Digest) -> os.stat_result | None:
        try:
            state = os.lstat(self._layout.blob(digest))
        except OSError:
            return None
        return state if stat.S_ISREG(state.st_mode) else None

    def _rename(self, path: str, digest: Digest) -> None:
        target = self._layout.blob(digest)
        directory = os.path.dirname(target)
        if not os.path.isdir(directory):
            os.makedirs(directory, mode=0o700, exist_ok=True)
            _flush_directory(os.path.dirname(directory))

        def move() -> int | None:
            replaced = self.size(digest)
            with storage_errors(f"storing {digest}"):
                try:
                    os.rename(path, target)
                except IsADirectoryError:
                    # A rename replaces everything but that. It goes with what else is left over.
                    os.rename(target, f"{self._layout.temporary}/in-the-way-{uuid.uuid4().hex}")
                    os.rename(path, target)
            return replaced

        self.quota.hold(move)
        _flush_directory(directory)


def is_intact(
    files: BlobFiles, digest: Digest, paced: Callable[[int], None] = lambda _: None, *, keep_cached: bool = False
) -> bool | None:
    """Whether a held blob still has its digest; None if it is not held. Blocks for as long as it takes to read it.

    Args:
        paced: told the bytes of each piece.
        keep_cached: the blob is being served, so its pages stay in the page cache.

    Raises:
        OSError: it cannot be read.
    """
    held = files.open(digest)
    if held is None:
        return None
    hasher = digest.hasher()
    with held.file as file:
        while piece := file.read(_PIECE):
            hasher.update(piece)
            paced(len(piece))
        if not keep_cached:
            # What was read once will hardly be read again soon: others have more use for the memory. A sandbox may refuse advice.
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


def _flush_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
