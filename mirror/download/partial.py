"""The partial file of a blob: a sparse file with bytes at their final offsets, its chunk map, its locks, and its signal."""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Callable
from concurrent.futures import Executor
from io import FileIO
from typing import ParamSpec, TypeVar

from mirror.aio import Shared, Signal
from mirror.core.digest import Digest
from mirror.core.pieces import CHUNK
from mirror.download.chunk_map import ChunkMap, Fate
from mirror.errors import StorageError
from mirror.storage.blobs import CachedBlob
from mirror.storage.coordination import RangeLock, is_locked, reopened
from mirror.storage.errors import storage_errors
from mirror.storage.layout import Layout
from mirror.storage.owner import owner_of, set_owner
from mirror.storage.space_quota import SpaceQuota

__all__ = ["CHUNK", "Partial", "is_driven"]

# A longer write takes larger folios of memory, which the kernel has to find first. On a virtual machine whose host takes back
# free memory, writes of a MiB and more cost up to ten times as much.
_WRITE_BYTES = 512 << 10

T = TypeVar("T")
P = ParamSpec("P")

# Far above the size of any blob, so that neither collides with the lock of a chunk.
_DRIVER_LOCK = 1 << 62
# Shared by the processes that follow the driver and have clients as readers.
_READERS_LOCK = _DRIVER_LOCK + 1


class Partial:
    """The partial file of one blob, as one process has it open.

    Attributes:
        digest: the digest that the whole file must have.
        map: what has arrived.
        signal: pulsed under a chunk's index when bytes arrive there, and for all waiters when anything else changes.
        shared: keeps map and locks open while threads use them, beyond `close`.
        is_verified: whether the digest has matched, in this process or in the one that drives it.
    """

    def __init__(self, layout: Layout, quota: SpaceQuota, digest: Digest) -> None:
        self.digest = digest
        self.is_verified = False
        self._quota = quota
        self._shows_readers = False
        self._path = layout.partial(digest)
        self._map_path = layout.chunk_map(digest)
        self.signal = Signal()
        self._blob: CachedBlob | None = None
        with storage_errors(f"opening the partial file of {digest}"), contextlib.ExitStack() as opened:
            self._data = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            opened.callback(os.close, self._data)
            self._lock = opened.enter_context(contextlib.closing(RangeLock(self._data)))
            self.map = ChunkMap(self._map_path)
            opened.pop_all()
        self._file = Shared(self._close_file)
        self._file.keep()
        self.shared = Shared(self._close_shared)

    async def in_thread(self, executor: Executor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work on these files; they stay open for it if the caller is cancelled."""
        return await self.shared.in_thread(executor, work, *args, **kwargs)

    # ---- the signal

    async def changed(self, timeout_s: float, position: int | None = None) -> None:
        """Wait until bytes arrive in the chunk of a position, or anything else changes; at most `timeout_s` seconds."""
        await self.signal.wait(timeout_s, None if position is None else position // CHUNK)

    def announce(self) -> None:
        """Wake all waiters. Must be called on the event loop."""
        self.signal.pulse()

    def announce_bytes(self, start: int, stop: int) -> None:
        """Wake the waiters for bytes in the chunks between two positions. Must be called on the event loop."""
        for index in range(start // CHUNK, -(-stop // CHUNK)):
            self.signal.pulse(index)

    # ---- locks

    def try_acquire_driver(self) -> bool:
        """Try to become the driver: the process that completes this blob."""
        return self._lock.try_acquire(_DRIVER_LOCK, 1)

    def show_readers(self, present: bool) -> None:
        """Show the driver whether clients read the blob in this process."""
        if present and not self._shows_readers:
            # It fails only while the driver looks; the next call tries again.
            self._shows_readers = self._lock.try_share(_READERS_LOCK, 1)
        elif self._shows_readers and not present:
            self._lock.release(_READERS_LOCK, 1)
            self._shows_readers = False

    def has_readers_elsewhere(self) -> bool:
        """Whether clients of other processes read it."""
        if self.is_closed:
            return False
        alone = self._lock.try_acquire(_READERS_LOCK, 1)
        if alone:
            self._lock.release(_READERS_LOCK, 1)
        return not alone

    def locks(self) -> RangeLock:
        """A new holder of chunk locks; close it when done."""
        with storage_errors(f"opening the partial file of {self.digest}"):
            return RangeLock(self._data)

    def claim(self, lock: RangeLock, index: int) -> bool:
        """Try to become the writer of a chunk; after True, `arrived_in_chunk` includes what other processes have written."""
        if not lock.try_acquire(index * CHUNK, CHUNK):
            return False
        self.map.reread(index)
        return True

    @property
    def is_closed(self) -> bool:
        """Whether map and locks have been closed."""
        return self.shared.is_closed

    def is_current(self) -> bool:
        """Whether the name still refers to this file: False once it was committed or discarded."""
        try:
            named = os.stat(self._path)
        except OSError:
            return False
        mine = os.fstat(self._data)
        return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)

    # ---- the map

    def is_new(self) -> bool:
        """Whether nothing has begun with the file, so that there is no map."""
        return os.fstat(self._data).st_size == 0

    def refresh(self) -> bool:
        """Read what other processes have written into the map; True if there is a valid map.

        Raises:
            StorageError: it could not be read.
        """
        with storage_errors(f"reading the chunk map of {self.digest}"):
            return self.map.refresh(os.fstat(self._data))

    def marks_of_another_boot(self) -> array[int] | None:
        """The chunks' numbers of a map that was written before the machine was started again, else None; see `accept`.

        Raises:
            StorageError: it could not be read.
        """
        with storage_errors(f"reading the chunk map of {self.digest}"):
            return self.map.of_another_boot(os.fstat(self._data))

    def accept(self, marks: array[int]) -> None:
        """Go on with such a map, as far as its bytes were hashed again. Only for the driver.

        Raises:
            StorageError: it could not be written.
        """
        with storage_errors(f"taking up the partial file of {self.digest}"):
            self.map.accept(os.fstat(self._data), marks)

    def begin(self, size: int, owner: str | None = None) -> None:
        """Start with an empty map for a blob of `size` bytes, for which space is reserved. Only for the driver.

        Args:
            owner: the registry that it counts for.

        Raises:
            StorageError: there is no space.
        """
        with storage_errors(f"starting the partial file of {self.digest}"):
            self.map.empty()
            if not self.is_new():
                self._release_space()
                os.ftruncate(self._data, 0)

            def create() -> None:
                if owner is not None and self._quota.keeps_owners:
                    set_owner(self._data, owner)
                os.ftruncate(self._data, size)

            self._quota.claim(size, str(self.digest), owner, create)
            self.map.begin(os.fstat(self._data))

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes that continue what has arrived of one chunk, and mark them as arrived. Blocks.

        Raises:
            StorageError: they could not be written.
        """
        with storage_errors(f"writing the partial file of {self.digest}"):
            _write_all(self._data, data, offset)
            self.map.mark(offset, offset + len(data))

    def publish(self, fate: Fate) -> None:
        """Write what has become of the bytes for all processes, if that is possible. Only for the driver."""
        self.is_verified = self.is_verified or fate is Fate.VERIFIED
        with contextlib.suppress(OSError):
            self.map.write_fate(fate)

    # ---- reading, and the end

    @property
    def is_readable(self) -> bool:
        """Whether the file is open for `reader`."""
        return not self._file.is_closed

    def reader(self) -> FileIO:
        """A new descriptor for a reader; it stays valid after commit or removal. The file must be open."""
        return FileIO(reopened(self._data if self._blob is None else self._blob.file.fileno(), os.O_RDONLY))

    def replace_by(self, blob: CachedBlob) -> None:
        """Have readers read a held blob from now on; it is closed with this file."""
        self._blob = blob

    @property
    def descriptor(self) -> int:
        """The open file, to be flushed before the commit."""
        return self._data

    @property
    def path(self) -> str:
        """The name of the file."""
        return self._path

    def remove_map(self) -> None:
        """Remove the map after the commit, for good: the last close of a file frees it, which may take the disk a while."""
        with contextlib.suppress(OSError):
            os.unlink(self._map_path)
        self.map.close()

    def discard(self, fate: Fate = Fate.OPEN) -> None:
        """Remove bytes and map. Only for the driver. Readers with a descriptor can still read.

        Args:
            fate: the reason, for other processes.
        """
        self.publish(fate)
        if self.is_current():
            self._release_space()
        # The map first: a process that comes between the two then starts with an empty one.
        for path in (self._map_path, self._path):
            with contextlib.suppress(OSError):
                os.unlink(path)

    def close(self, *, keep_readable: bool = False) -> None:
        """Close map, locks and file as soon as no thread uses them.

        Args:
            keep_readable: leave the file open for `reader`, until the next call.
        """
        self.shared.close()
        if not keep_readable:
            self._file.close()

    def abandon(self, *, keep_readable: bool = False) -> None:
        """Close it, and remove it if it is empty and no other process uses it: an empty file would stay otherwise."""
        if not self.is_closed:
            with contextlib.suppress(OSError, StorageError):
                if self.is_new() and not self.refresh() and self.try_acquire_driver() and self.is_current():
                    self.discard()
        self.close(keep_readable=keep_readable)

    def _release_space(self) -> None:
        self._quota.release(os.fstat(self._data).st_size, owner=owner_of(self._data))

    def _close_shared(self) -> None:
        self._lock.close()
        self.map.close()
        self._file.drop()

    def _close_file(self) -> None:
        os.close(self._data)
        if self._blob is not None:
            self._blob.close()


def _write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view[:_WRITE_BYTES], offset)
        offset += written
        view = view[written:]


def is_driven(layout: Layout, digest: Digest) -> bool:
    """Whether a process holds the driver lock of a partial file."""
    try:
        descriptor = os.open(layout.partial(digest), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_locked(descriptor, _DRIVER_LOCK, 1)
    finally:
        os.close(descriptor)
