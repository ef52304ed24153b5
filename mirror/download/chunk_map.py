"""The chunk map of a partial file: how much of each chunk has arrived, and how far the blob has come.

A file: a header, one unsigned 32-bit number per chunk, and 8 bytes of a digest per chunk. The header is magic, chunk size, size,
inode of the sparse file, boot, fate, and the number of bytes that have been hashed. A chunk's number is how many bytes of it have
arrived, counted from its start; its digest is that of all bytes up to its end, and is written when those have been hashed.

Bytes are written before the number that covers them. Each number is written in one piece by the holder of the chunk's lock, so
any process may read the map at any time. A map that belongs to an earlier sparse file of the same name does not match the inode,
a damaged one hardly the file's size; neither is accepted. A map of another boot may cover bytes that a power loss has taken: it
is accepted as far as the digests match after hashing again (`verifier.rehash`).
"""

from __future__ import annotations

import enum
import functools
import os
import struct
from array import array
from pathlib import Path

from mirror.core.pieces import CHUNK

_HEADER = struct.Struct("=8sQQQ16sQQ")
_FATE, _HASHED = 48, 56
_MARK = struct.Struct("=I")
_NUMBER = struct.Struct("=Q")
_MAGIC = b"RMCHUNK2"
_CHECK_BYTES = 8
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# The search for the end of what has arrived is bounded, so that it costs the same in a blob of any size.
_LOOK_AHEAD_CHUNKS = 64


class Fate(enum.IntEnum):
    """What has become of the bytes; the driver writes it for all processes."""

    OPEN = 0
    """They arrive, or are being hashed."""
    VERIFIED = 1
    """All have arrived and have the digest: an open descriptor reads the right bytes, even if the name is gone."""
    NO_ROOM = 2
    """Discarded because there is no room."""
    WRONG = 3
    """Discarded because they are not the blob's."""
    LOST = 4
    """Discarded because the disk failed to write them: what can still be read of them may be wrong."""


class ChunkMap:
    """The map of one blob; only the driver creates its file.

    If opening created it, that could happen just after the driver has committed the blob and removed the map: it would stay.

    Attributes:
        size: bytes of the whole blob, None until they are known.
        arrived: bytes of each chunk.
        hashed: bytes that had been hashed at the last read.
        fate: the one at the last read.
    """

    def __init__(self, path: str) -> None:
        self.size: int | None = None
        self.arrived: array[int] = array("I")
        self.hashed = 0
        self.fate = Fate.OPEN
        self._boot = boot_id()
        self._path = path
        self._opened: int | None = None

    def close(self) -> None:
        """Close the descriptor."""
        if self._opened is not None:
            os.close(self._opened)
            self._opened = None

    @property
    def _descriptor(self) -> int:
        """The open file; raises FileNotFoundError as long as there is none."""
        return self._open(0)

    def _open(self, flags: int) -> int:
        if self._opened is None:
            self._opened = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | flags, 0o600)
        return self._opened

    # ---- the file

    def refresh(self, file: os.stat_result) -> bool:
        """Read what is written for a sparse file; True if that is accepted."""
        found = self._read(file)
        if found is None or found[0] != self._boot or self.size not in (None, file.st_size):
            return False
        self.size, self.arrived = file.st_size, found[1]
        return True

    def of_another_boot(self, file: os.stat_result) -> array[int] | None:
        """The chunks' numbers if the map is valid but of another boot, else None."""
        found = self._read(file)
        return None if found is None or found[0] == self._boot else found[1]

    def accept(self, file: os.stat_result, marks: array[int]) -> None:
        """Make a map of another boot one of this boot, with other numbers."""
        os.pwrite(self._descriptor, marks.tobytes(), _HEADER.size)
        self._write_header(file)

    def _read(self, file: os.stat_result) -> tuple[bytes, array[int]] | None:
        """The boot and the chunks' numbers, if they match a sparse file."""
        try:
            header = os.pread(self._descriptor, _HEADER.size, 0)
        except FileNotFoundError:
            return None
        if len(header) < _HEADER.size:
            return None
        magic, chunk, size, inode, boot, fate, self.hashed = _HEADER.unpack(header)
        self.fate = Fate(fate) if fate <= max(Fate) else Fate.OPEN
        if (magic, chunk, size, inode) != (_MAGIC, CHUNK, file.st_size, file.st_ino):
            return None
        count = chunks_of(size)
        marks = os.pread(self._descriptor, count * 4, _HEADER.size)
        if os.fstat(self._descriptor).st_size != _HEADER.size + count * (_MARK.size + _CHECK_BYTES):
            return None
        arrived = array("I")
        arrived.frombytes(marks)
        if count and (max(arrived) > CHUNK or arrived[-1] > length_of(count - 1, size)):
            return None
        return boot, arrived

    def empty(self) -> None:
        """Remove all content; creates the file."""
        os.ftruncate(self._open(os.O_CREAT), 0)

    def begin(self, file: os.stat_result) -> None:
        """Start an empty map for a sparse file of its full size."""
        marks = array("I", bytes(4 * chunks_of(file.st_size)))
        os.pwrite(self._descriptor, marks.tobytes() + bytes(_CHECK_BYTES * len(marks)), _HEADER.size)
        self._write_header(file)
        self.size, self.arrived = file.st_size, marks

    def _write_header(self, file: os.stat_result) -> None:
        header = _HEADER.pack(_MAGIC, CHUNK, file.st_size, file.st_ino, self._boot, Fate.OPEN, 0)
        os.pwrite(self._descriptor, header, 0)

    def mark(self, start: int, stop: int) -> None:
        """Record that the bytes from `start` to `stop` have arrived; they continue what has arrived of the first chunk."""
        for index in range(start // CHUNK, -(-stop // CHUNK)):
            count = min(CHUNK, stop - index * CHUNK)
            os.pwrite(self._descriptor, _MARK.pack(count), _HEADER.size + _MARK.size * index)
            self.arrived[index] = count

    def reread(self, index: int) -> None:
        """Read the number of one chunk again."""
        self.arrived[index] = _MARK.unpack(os.pread(self._descriptor, _MARK.size, _HEADER.size + _MARK.size * index))[0]

    def write_fate(self, fate: Fate) -> None:
        """Write what has become of the bytes."""
        os.pwrite(self._descriptor, _NUMBER.pack(fate), _FATE)
        self.fate = fate

    def write_hashed(self, count: int) -> None:
        """Write how far hashing has come; other processes see by that that it does not hang."""
        os.pwrite(self._descriptor, _NUMBER.pack(count), _HASHED)

    def write_check(self, index: int, digest: bytes) -> None:
        """Write the digest of all bytes up to a chunk's end."""
        os.pwrite(self._descriptor, digest[:_CHECK_BYTES], self._check_at(index))

    def matches_check(self, index: int, digest: bytes) -> bool:
        """Whether that digest is the written one."""
        return os.pread(self._descriptor, _CHECK_BYTES, self._check_at(index)) == digest[:_CHECK_BYTES]

    def _check_at(self, index: int) -> int:
        size = _HEADER.unpack(os.pread(self._descriptor, _HEADER.size, 0))[2] if self.size is None else self.size
        return _HEADER.size + _MARK.size * chunks_of(size) + _CHECK_BYTES * index

    # ---- what has arrived

    def available(self, position: int) -> int:
        """The end of what can be read from `position` on without a hole (at most some chunks ahead)."""
        if self.size is None:
            return position
        index = position // CHUNK
        for i in range(index, min(index + _LOOK_AHEAD_CHUNKS, len(self.arrived))):
            count = self.arrived[i]
            if count < length_of(i, self.size):
                return max(position, i * CHUNK + count)
        return min(self.size, (index + _LOOK_AHEAD_CHUNKS) * CHUNK)

    def received(self) -> int:
        """Bytes that have arrived in all."""
        return sum(self.arrived)

    def is_complete(self) -> bool:
        """Whether every byte has arrived."""
        return self.size is not None and self.received() == self.size

    def hole(self, start: int) -> tuple[int, int] | None:
        """The first hole that ends after `start`: where its bytes are missing, from and to; None if there is none."""
        if self.size is None or start >= self.size:
            return None
        first: int | None = None
        for i in range(start // CHUNK, len(self.arrived)):
            count = self.arrived[i]
            if first is None:
                if count < length_of(i, self.size):
                    first = i * CHUNK + count
            elif count:
                return first, i * CHUNK
        return None if first is None else (first, self.size)


def chunks_of(size: int) -> int:
    """How many chunks a blob has."""
    return -(-size // CHUNK)


def length_of(index: int, size: int) -> int:
    """Bytes of one chunk of a blob."""
    return min(CHUNK, size - index * CHUNK)


@functools.cache
def boot_id() -> bytes:
    """16 bytes that change with each boot of the machine (random(4)); zeros if they cannot be read."""
    try:
        return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", "")).ljust(16, b"\0")[:16]
    except (OSError, ValueError):
        return bytes(16)
