"""The files of an import: they arrive beside the cached content, and become cached content all at once or not at all.

<store>/imports/<import>.lock       locked by the process that imports, until it ends
<store>/imports/<import>.<number>   content that has arrived; its space is reserved
<store>/imports/<import>.journal    what is about to become visible of images that are not whole yet

The kernel frees the lock of a process that is killed. Then `left_behind` finds its import, and maintenance removes the files and
what the journal lists.
"""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.errors import StorageError
from mirror.storage.coordination import FileLock
from mirror.storage.errors import storage_errors
from mirror.storage.layout import Layout
from mirror.storage.owner import owner_of
from mirror.storage.page_cache import start_write_back
from mirror.storage.rows import MALFORMED, parse_repository
from mirror.storage.space_quota import SpaceQuota

_WRITE_BACK_BYTES: Final = 8 << 20
_ATTEMPTS: Final = 5


@dataclass(frozen=True, slots=True)
class PendingImage:
    """What an import adds to the store for an image whose tag does not name it yet.

    Attributes:
        manifests: that the repository has not held before.
        content: the files that were not cached before.
    """

    repository: Repository
    manifests: tuple[Digest, ...]
    content: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class ListedFile:
    """A staged file of any import.

    Attributes:
        size: bytes that it will have.
        owner: the registry that it counts for; None until its image becomes visible.
    """

    path: str
    size: int
    owner: str | None


class StagedFile:
    """A file that arrives.

    Attributes:
        path: its name.
        size: bytes that it will have; its space is reserved.
        written: bytes that it has.
    """

    def __init__(self, path: str, size: int, descriptor: int) -> None:
        self.path = path
        self.size = size
        self.written = 0
        self._descriptor = descriptor
        self._written_back = 0

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes. Blocks.

        Raises:
            StorageError: they cannot be written.
        """
        view = memoryview(data)
        with storage_errors("writing what is imported"):
            while view:
                count = os.write(self._descriptor, view)
                self.written += count
                view = view[count:]
        if self.written - self._written_back >= _WRITE_BACK_BYTES:
            start_write_back(self._descriptor, self._written_back, self.written - self._written_back)
            self._written_back = self.written

    def flush(self) -> None:
        """Make what is written durable. The kernel may have forgotten a failed write by the time a closed file is opened again.

        Raises:
            StorageError: it cannot be made durable.
        """
        with storage_errors("flushing what is imported"):
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; it stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1


class Staging:
    """The files of one import. Each method blocks for about one disk operation.

    Raises:
        StorageError: from the constructor, if the store cannot be written.
    """

    def __init__(self, layout: Layout, quota: SpaceQuota) -> None:
        self._quota = quota
        self._base, self._lock = _begin(layout)
        self._number = self._announced = 0
        self._unsettled: set[int] = set()

    def create(self, size: int, what: str) -> StagedFile:
        """Reserve space, and create a file of `size` bytes.

        Args:
            what: the content, for errors.

        Raises:
            StorageError: `full` or `too_large`; or the file cannot be created.
        """
        self._number += 1
        path = f"{self._base}.{self._number}"
        descriptor = -1

        def begin() -> None:
            nonlocal descriptor
            with storage_errors(f"storing {what}"):
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
                os.ftruncate(descriptor, size)

        try:
            self._quota.claim(size, what, begin=begin)
        except BaseException:
            if descriptor >= 0:
                os.close(descriptor)
                os.unlink(path)
            raise
        return StagedFile(path, size, descriptor)

    def remove(self, path: str) -> None:
        """Remove a file, and release its space."""
        _remove(path, self._quota)

    def announce(self, pending: PendingImage) -> int:
        """Record durably what is about to become visible; unless it is settled, maintenance removes it after the end.

        Returns:
            A number for `settle`.

        Raises:
            StorageError: that cannot be recorded.
        """
        number = self._announced = self._announced + 1
        self._unsettled.add(number)
        self._record([number, str(pending.repository), list(map(str, pending.manifests)), list(map(str, pending.content))])
        return number

    def settle(self, number: int) -> None:
        """Record that what was announced is whole, and stays.

        Raises:
            StorageError: that cannot be recorded.
        """
        self._record([number])
        self._unsettled.discard(number)

    def _record(self, row: list[object]) -> None:
        with storage_errors("recording an import"), open(f"{self._base}.journal", "a", encoding="ascii") as file:
            file.write(f"{json.dumps(row)}\n")
            file.flush()
            os.fsync(file.fileno())

    def close(self) -> None:
        """End the import: remove its files, except those that maintenance needs to remove what was announced."""
        for path in _files(self._base):
            _remove(path, self._quota)
        if not self._unsettled:
            _unlink_rest(self._base)
        self._lock.close()


class LeftBehind:
    """The files of an import whose process was killed, or that has failed. No other process touches them until `close`."""

    def __init__(self, base: str, lock: FileLock) -> None:
        self._base = base
        self._lock = lock

    def announced(self) -> list[PendingImage]:
        """Return the images that may be visible in part."""
        found: dict[int, PendingImage] = {}
        with contextlib.suppress(OSError), open(f"{self._base}.journal", encoding="ascii", errors="replace") as file:
            for line in file:
                with contextlib.suppress(*MALFORMED):
                    number, *row = json.loads(line)
                    if not row:
                        found.pop(number, None)
                    elif (repository := parse_repository(row[0])) is not None:
                        found[number] = PendingImage(repository, _digests(row[1]), _digests(row[2]))
        return list(found.values())

    def remove(self, quota: SpaceQuota) -> int:
        """Remove its files; returns their number. Call it after what was announced has been removed."""
        paths = list(_files(self._base))
        for path in paths:
            _remove(path, quota)
        _unlink_rest(self._base)
        return len(paths)

    def close(self) -> None:
        """Release it."""
        self._lock.close()


def left_behind(layout: Layout) -> Iterator[LeftBehind]:
    """Yield imports whose process has ended; close each."""
    for name in _names(layout.imports):
        base, dot, suffix = f"{layout.imports}/{name}".rpartition(".")
        if dot and suffix == "lock":
            lock = FileLock(f"{base}.lock")
            if lock.try_acquire():
                yield LeftBehind(base, lock)
            else:
                lock.close()


def staged_files(layout: Layout) -> Iterator[ListedFile]:
    """Yield the files that imports have staged."""
    for name in _names(layout.imports):
        if name.rpartition(".")[2].isdigit():
            path = f"{layout.imports}/{name}"
            with contextlib.suppress(OSError):
                yield ListedFile(path, os.lstat(path).st_size, owner_of(path))


def _begin(layout: Layout) -> tuple[str, FileLock]:
    for _ in range(_ATTEMPTS):
        base = f"{layout.imports}/{uuid.uuid4().hex}"
        lock = FileLock(f"{base}.lock")
        # Maintenance may come before the lock is held, and take the import for one that was left behind.
        if lock.try_acquire() and os.path.exists(f"{base}.lock"):
            return base, lock
        lock.close()
    raise StorageError("an import cannot begin: its lock is held", "busy")


def _unlink_rest(base: str) -> None:
    for suffix in ("journal", "lock"):
        with contextlib.suppress(OSError):
            os.unlink(f"{base}.{suffix}")


def _remove(path: str, quota: SpaceQuota) -> None:
    with contextlib.suppress(OSError):
        size, owner = os.lstat(path).st_size, owner_of(path)
        os.unlink(path)
        quota.release(size, owner=owner)


def _files(base: str) -> Iterator[str]:
    directory, _, own = base.rpartition("/")
    for name in _names(directory):
        stem, _, number = name.rpartition(".")
        if stem == own and number.isdigit():
            yield f"{directory}/{name}"


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _digests(texts: Iterable[str]) -> tuple[Digest, ...]:
    return tuple(Digest.parse(text) for text in texts)
