"""A blob in the making on disk: a sparse file, and a map of how much of each chunk has arrived.

The map file is a header (magic, chunk size, size, inode of the sparse file) and one unsigned 32-bit number per chunk: how
many bytes of it have arrived, counted from its start. Bytes are written before the number that vouches for them, and each
number is written in one piece by the one who holds the chunk's lock, so any process may read the map at any time. A map that
was left behind by another sparse file of the same name does not fit the inode, one that is damaged hardly the file's size,
and neither is believed.

After a power loss the map may vouch for bytes that never reached the disk; the digest finds that.
"""

from __future__ import annotations

import contextlib
import os
import struct
from array import array
from io import FileIO

from mirror.core.digest import Digest
from mirror.storage.faults import storage_errors
from mirror.storage.layout import Layout
from mirror.storage.locks import Lock, reopened
from mirror.storage.room import Room

CHUNK = 1 << 20
_HEADER = struct.Struct("=8sQQQ")
_MARK = struct.Struct("=I")
_MAGIC = b"RMCHUNK1"
# In the place of the magic: the bytes were thrown away for want of room, not because they were wrong.
_NO_ROOM = b"RMNOROOM"
# Far above any blob, so that it never collides with the lock of a chunk.
_DRIVER = 1 << 62
# A reader's look ahead is bounded, so that finding out what has arrived costs the same in a blob of any size.
_LOOK_AHEAD = 64


class Partial:
    """One blob in the making, seen from one process.

    Attributes:
        digest: what the whole must hash to.
        size: bytes of the whole, None until somebody has learned it from upstream.
    """

    def __init__(self, layout: Layout, room: Room, digest: Digest) -> None:
        self.digest = digest
        self.size: int | None = None
        self._room = room
        self._path = layout.partial(digest)
        self._map_path = layout.chunk_map(digest)
        self._arrived: array[int] = array("I")
        with storage_errors(f"opening the partial file of {digest}"):
            self._data = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._map = -1
            try:
                self._lock = Lock(self._data)
                self._map = os.open(self._map_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError:
                self.close()
                raise

    # ---- who fills

    def drive(self) -> bool:
        """Try to become the one who completes this blob."""
        return self._lock.take(_DRIVER, 1)

    def locks(self) -> Lock:
        """A new holder of chunk locks; close it when done."""
        with storage_errors(f"opening the partial file of {self.digest}"):
            return Lock(self._data)

    def claim(self, lock: Lock, index: int) -> bool:
        """Try to become the one who writes into a chunk; after True, `arrived_in_chunk` is what everybody has written."""
        if not lock.take(index * CHUNK, CHUNK):
            return False
        mark = os.pread(self._map, _MARK.size, _HEADER.size + _MARK.size * index)
        self._arrived[index] = _MARK.unpack(mark)[0]
        return True

    @property
    def is_closed(self) -> bool:
        """Whether descriptors and locks have been given back."""
        return self._data < 0

    def is_current(self) -> bool:
        """Whether the name still leads to this file: False once it was committed or thrown away."""
        try:
            named = os.stat(self._path)
        except OSError:
            return False
        mine = os.fstat(self._data)
        return (named.st_dev, named.st_ino) == (mine.st_dev, mine.st_ino)

    # ---- the map

    def refresh(self) -> bool:
        """Take over what other processes have written into the map; True if there is a valid map."""
        header = os.pread(self._map, _HEADER.size, 0)
        if len(header) < _HEADER.size:
            return False
        magic, chunk, size, inode = _HEADER.unpack(header)
        file = os.fstat(self._data)
        if (magic, chunk, size, inode) != (_MAGIC, CHUNK, file.st_size, file.st_ino) or self.size not in (None, size):
            return False
        chunks = _chunks(size)
        marks = os.pread(self._map, chunks * 4, _HEADER.size)
        if len(marks) != chunks * 4:
            return False
        arrived = array("I")
        arrived.frombytes(marks)
        if chunks and (max(arrived) > CHUNK or arrived[-1] > _length(chunks - 1, size)):
            return False
        self.size, self._arrived = size, arrived
        return True

    def begin(self, size: int) -> None:
        """Start over with an empty map for a blob of `size` bytes, for which room is reserved. Only the driver may.

        Raises:
            StorageError: there is no room.
        """
        with storage_errors(f"starting the partial file of {self.digest}"):
            self._empty()
            self._room.claim(size, str(self.digest), lambda: os.ftruncate(self._data, size))
            marks = array("I", bytes(4 * _chunks(size)))
            os.pwrite(self._map, marks.tobytes(), _HEADER.size)
            os.pwrite(self._map, _HEADER.pack(_MAGIC, CHUNK, size, os.fstat(self._data).st_ino), 0)
        self.size, self._arrived = size, marks

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes that continue what has arrived of one chunk, and vouch for them. Blocks; call it in a thread.

        Raises:
            StorageError: they could not be written.
        """
        index, within = divmod(offset, CHUNK)
        with storage_errors(f"writing the partial file of {self.digest}"):
            _write_all(self._data, data, offset)
            count = within + len(data)
            os.pwrite(self._map, _MARK.pack(count), _HEADER.size + _MARK.size * index)
        self._arrived[index] = count

    # ---- what has arrived

    def available(self, position: int) -> int:
        """The end of what can be read from `position` on without a hole (at most some chunks ahead)."""
        if self.size is None:
            return position
        index = position // CHUNK
        for i in range(index, min(index + _LOOK_AHEAD, len(self._arrived))):
            count = self._arrived[i]
            if count < _length(i, self.size):
                return max(position, i * CHUNK + count)
        return min(self.size, (index + _LOOK_AHEAD) * CHUNK)

    def arrived_in_chunk(self, index: int) -> int:
        """How many bytes of a chunk have arrived."""
        return self._arrived[index]

    def hole(self, start: int) -> tuple[int, int] | None:
        """The first hole that ends after `start`: where its bytes are missing, from and to; None if there is none."""
        if self.size is None or start >= self.size:
            return None
        first: int | None = None
        for i in range(start // CHUNK, len(self._arrived)):
            count = self._arrived[i]
            if first is None:
                if count < _length(i, self.size):
                    first = i * CHUNK + count
            elif count:
                return first, i * CHUNK
        return None if first is None else (first, self.size)

    def received(self) -> int:
        """Bytes that have arrived in all."""
        return sum(self._arrived)

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

    def _empty(self) -> None:
        os.ftruncate(self._map, 0)
        self._room.release(os.fstat(self._data).st_size)
        os.ftruncate(self._data, 0)

    def discard(self, *, for_room: bool = False) -> None:
        """Throw bytes and map away. Only the driver may. Readers with a descriptor can still read.

        Args:
            for_room: the bytes are right, but there is no room for them; other processes can learn that from the map.
        """
        if for_room:
            with contextlib.suppress(OSError):
                os.pwrite(self._map, _NO_ROOM, 0)
        if self.is_current():
            self._room.release(os.fstat(self._data).st_size)
        # The map first: whoever comes between the two then starts with an empty one.
        for path in (self._map_path, self._path):
            with contextlib.suppress(OSError):
                os.unlink(path)

    def had_no_room(self) -> bool:
        """Whether it was thrown away for want of room."""
        return os.pread(self._map, len(_NO_ROOM), 0) == _NO_ROOM

    def close(self) -> None:
        """Give descriptors and locks back."""
        for descriptor in (self._data, self._map):
            if descriptor >= 0:
                os.close(descriptor)
        self._data = self._map = -1
        lock = getattr(self, "_lock", None)
        if lock is not None:
            lock.close()


def _chunks(size: int) -> int:
    return -(-size // CHUNK)


def _length(index: int, size: int) -> int:
    return min(CHUNK, size - index * CHUNK)


def _write_all(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        offset += written
        view = view[written:]
