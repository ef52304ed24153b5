"""A blob in the making on disk: a sparse file with bytes at their final offsets, its chunk map, and the locks of who fills."""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Callable
from concurrent.futures import Executor
from io import FileIO
from typing import ParamSpec, TypeVar

from mirror.aio import Shared
from mirror.core.digest import Digest
from mirror.download.chunk_map import CHUNK, ChunkMap, Fate
from mirror.errors import StorageError
from mirror.storage.coordination import RangeLock, reopened
from mirror.storage.errors import storage_errors
from mirror.storage.layout import Layout
from mirror.storage.space_quota import SpaceQuota

__all__ = ["CHUNK", "Partial"]

T = TypeVar("T")
P = ParamSpec("P")

# Far above any blob, so that it never collides with the lock of a chunk.
_DRIVER = 1 << 62
# Shared by the processes that follow the driver and have clients who read.
_WANTED = _DRIVER + 1


class Partial:
    """One blob in the making, seen from one process.

    Attributes:
        digest: what the whole must hash to.
        map: what has arrived of it.
        shared: keeps its files open and its locks locked while threads are at work, beyond `close`.
    """

    def __init__(self, layout: Layout, quota: SpaceQuota, digest: Digest) -> None:
        self.digest = digest
        self._quota = quota
        self._wants = False
        self._path = layout.partial(digest)
        self._map_path = layout.chunk_map(digest)
        with storage_errors(f"opening the partial file of {digest}"), contextlib.ExitStack() as opened:
            self._data = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            opened.callback(os.close, self._data)
            self._lock = opened.enter_context(contextlib.closing(RangeLock(self._data)))
            self.map = opened.enter_context(contextlib.closing(ChunkMap(self._map_path)))
            self.shared = Shared(opened.pop_all().close)

    async def in_thread(self, executor: Executor, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work on these files; they stay open for it if whoever waits is cancelled."""
        return await self.shared.in_thread(executor, work, *args, **kwargs)

    # ---- who fills

    def try_acquire_driver(self) -> bool:
        """Try to become the one who completes this blob."""
        return self._lock.try_acquire(_DRIVER, 1)

    def want(self, wanted: bool) -> None:
        """Let whoever drives this blob know whether clients read it here."""
        if wanted and not self._wants:
            # It fails only while the driver looks; then the next call does it.
            self._wants = self._lock.try_share(_WANTED, 1)
        elif self._wants and not wanted:
            self._lock.release(_WANTED, 1)
            self._wants = False

    def is_wanted_elsewhere(self) -> bool:
        """Whether clients of other processes read it."""
        if self.is_closed:
            return False
        alone = self._lock.try_acquire(_WANTED, 1)
        if alone:
            self._lock.release(_WANTED, 1)
        return not alone

    def locks(self) -> RangeLock:
        """A new holder of chunk locks; close it when done."""
        with storage_errors(f"opening the partial file of {self.digest}"):
            return RangeLock(self._data)

    def claim(self, lock: RangeLock, index: int) -> bool:
        """Try to become the one who writes into a chunk; after True, `arrived_in_chunk` is what everybody has written."""
        if not lock.try_acquire(index * CHUNK, CHUNK):
            return False
        self.map.reread(index)
        return True

    @property
    def is_closed(self) -> bool:
        """Whether it has been closed."""
        return self.shared.is_closed

    def is_current(self) -> bool:
        """Whether the name still leads to this file: False once it was committed or thrown away."""
        try:
            named = os.stat(self._path)
        except OSError:
            return False
        mine = os.fstat(self._data)
        return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)

    # ---- the map

    @property
    def size(self) -> int | None:
        """Bytes of the whole, None until somebody has learned it from upstream."""
        return self.map.size

    def refresh(self) -> bool:
        """Take over what other processes have written into the map; True if there is a map that can be believed.

        Raises:
            StorageError: it could not be read.
        """
        with storage_errors(f"reading the chunk map of {self.digest}"):
            return self.map.refresh(os.fstat(self._data))

    def doubtful(self) -> array[int] | None:
        """What a map says that was written before the machine started anew, None if there is none; see `believe`.

        Raises:
            StorageError: it could not be read.
        """
        with storage_errors(f"reading the chunk map of {self.digest}"):
            return self.map.of_another_boot(os.fstat(self._data))

    def believe(self, marks: array[int]) -> None:
        """Go on with such a map, as far as its bytes were hashed again. Only the driver may.

        Raises:
            StorageError: it could not be written.
        """
        with storage_errors(f"taking up the partial file of {self.digest}"):
            self.map.believe(os.fstat(self._data), marks)

    def begin(self, size: int) -> None:
        """Start over with an empty map for a blob of `size` bytes, for which room is reserved. Only the driver may.

        Raises:
            StorageError: there is no room.
        """
        with storage_errors(f"starting the partial file of {self.digest}"):
            self.map.empty()
            self._quota.release(os.fstat(self._data).st_size)
            os.ftruncate(self._data, 0)
            self._quota.claim(size, str(self.digest), lambda: os.ftruncate(self._data, size))
            self.map.begin(os.fstat(self._data))

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes that continue what has arrived of one chunk, and vouch for them. Blocks; call it in a thread.

        Raises:
            StorageError: they could not be written.
        """
        index, within = divmod(offset, CHUNK)
        with storage_errors(f"writing the partial file of {self.digest}"):
            _write_all(self._data, data, offset)
            self.map.mark(index, within + len(data))

    def tell(self, fate: Fate) -> None:
        """Tell all processes what has become of the bytes, if that can be written. Only the driver may."""
        with contextlib.suppress(OSError):
            self.map.tell(fate)

    # ---- what has arrived

    def available(self, position: int) -> int:
        """The end of what can be read from `position` on without a hole (at most some chunks ahead)."""
        return self.map.available(position)

    def arrived_in_chunk(self, index: int) -> int:
        """How many bytes of a chunk have arrived."""
        return self.map.arrived[index]

    def hole(self, start: int) -> tuple[int, int] | None:
        """The first hole that ends after `start`: where its bytes are missing, from and to; None if there is none."""
        return self.map.hole(start)

    def received(self) -> int:
        """Bytes that have arrived in all."""
        return sum(self.map.arrived)

    def is_complete(self) -> bool:
        """Whether every byte has arrived."""
        return self.size is not None and self.received() == self.size

    # ---- reading, and the end

    def reader(self) -> FileIO:
        """A descriptor of its own for a reader; it stays good after commit or removal."""
        return FileIO(reopened(self._data, os.O_RDONLY))

    @property
    def descriptor(self) -> int:
        """For flushing before the commit."""
        return self._data

    @property
    def path(self) -> str:
        """Where the bytes lie."""
        return self._path

    def forget_map(self) -> None:
        """Remove the map after the commit."""
        with contextlib.suppress(OSError):
            os.unlink(self._map_path)

    def discard(self, fate: Fate = Fate.OPEN) -> None:
        """Throw bytes and map away. Only the driver may. Readers with a descriptor can still read.

        Args:
            fate: why, for other processes.
        """
        self.tell(fate)
        if self.is_current():
            self._quota.release(os.fstat(self._data).st_size)
        # The map first: whoever comes between the two then starts with an empty one.
        for path in (self._map_path, self._path):
            with contextlib.suppress(OSError):
                os.unlink(path)

    def close(self) -> None:
        """Give descriptors and locks back, as soon as no thread uses them."""
        self.shared.close()

    def abandon(self) -> None:
        """Close it, and remove it if nothing has begun with it and nobody else is at it: else an empty file would stay."""
        if self.is_closed:
            return
        with contextlib.suppress(OSError, StorageError):
            if not os.fstat(self._data).st_size and not self.refresh() and self.try_acquire_driver() and self.is_current():
                self.discard()
        self.close()


def _write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        offset += written
        view = view[written:]
