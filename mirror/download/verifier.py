"""Hashing of a partial file: of the bytes in hand as long as they arrive without a gap, else of what is read back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from array import array
from concurrent.futures import Executor
from typing import Protocol

from mirror.download.partial import CHUNK, Partial
from mirror.errors import DigestMismatch, StorageError

_READ_BYTES = 256 << 10
# Bytes of a step whose range fetcher was cancelled meanwhile are noticed after so long.
_TIMEOUT_S = 1.0


class Hasher(Protocol):
    """A running hash."""

    def update(self, data: bytes | memoryview, /) -> None: ...
    def digest(self) -> bytes: ...
    def hexdigest(self) -> str: ...
    def copy(self) -> Hasher: ...


class Verifier:
    """Hashes a blob from its first byte to its last while it arrives. For the driver.

    It writes into the map the digest of all bytes up to each chunk's end, and how far reading back has come.
    """

    def __init__(self, partial: Partial, executor: Executor) -> None:
        self._partial = partial
        self._executor = executor
        self._loop = asyncio.get_running_loop()
        self._hasher: Hasher = partial.digest.hasher()
        self._position = 0
        # One thread at a time hashes: one that has written, or one that reads back.
        self._lock = threading.Lock()

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Write bytes as `Partial.write` does, and hash them if they are the next ones. Blocks.

        A step that is not hashed here is read back later.
        """
        # A piece from elsewhere does not take the lock: the front piece that comes meanwhile would have to be read back.
        is_next = offset == self._position and self._lock.acquire(blocking=False)
        try:
            self._partial.write(offset, data)
            if is_next:
                self._update(data)
        finally:
            if is_next:
                self._lock.release()
        if not is_next or self._position == self._partial.map.size:
            # Otherwise there is nothing to do for `run`.
            self._loop.call_soon_threadsafe(self._partial.signal.pulse, self)

    async def run(self) -> None:
        """Return when all bytes have been hashed and have the digest.

        Raises:
            DigestMismatch: they have another one.
            StorageError: the file could not be read back.
        """
        partial = self._partial
        while partial.map.size is None:
            await partial.changed(_TIMEOUT_S)
        # Read once in each turn: a thread that hashes what it has written moves it on meanwhile.
        while (position := self._position) < partial.map.size:
            end = partial.map.available(position)
            if end > position and not self._lock.locked():
                await partial.in_thread(self._executor, self._read_back, end)
            else:
                await partial.signal.wait(_TIMEOUT_S, self)
        found, size = self._hasher.hexdigest(), partial.map.size
        if found != partial.digest.encoded:
            raise DigestMismatch(f"{size} bytes that should be {partial.digest} are {partial.digest.algorithm}:{found}")

    def _read_back(self, end: int) -> None:
        """Hash one piece of what has arrived up to `end`."""
        with self._lock:
            if self._position < end:
                count = min(end, self._position - self._position % CHUNK + CHUNK) - self._position
                self._update(read_piece(self._partial.descriptor, self._position, count))
                with contextlib.suppress(OSError):
                    self._partial.map.write_hashed(self._position)

    def _update(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            piece = rest[: CHUNK - self._position % CHUNK]
            self._hasher.update(piece)
            self._position += len(piece)
            rest = rest[len(piece) :]
            if self._position % CHUNK == 0:
                with contextlib.suppress(OSError):
                    self._partial.map.write_check(self._position // CHUNK - 1, self._hasher.copy().digest())


async def rehash(partial: Partial, executor: Executor) -> None:
    """After a power loss: hash again what the map covers, accept it as far as that matches the map, drop the rest.

    For the driver. Does nothing if the map is of this boot, or there is none.

    Raises:
        StorageError: the file could not be read.
    """
    marks = partial.marks_of_another_boot()
    if marks is None:
        return
    hasher, right = partial.digest.hasher(), 0
    while right < len(marks) and marks[right] == CHUNK:
        if not await partial.in_thread(executor, _rehash_chunk, partial, hasher, right):
            break
        right += 1
    marks[right:] = array("I", bytes(4 * (len(marks) - right)))
    await partial.in_thread(executor, partial.accept, marks)


def _rehash_chunk(partial: Partial, hasher: Hasher, chunk: int) -> bool:
    """Whether a chunk has the digest that the map says."""
    position, end = chunk * CHUNK, chunk * CHUNK + CHUNK
    while position < end:
        position = hash_piece(hasher, partial.descriptor, position, end)
    with contextlib.suppress(OSError):
        partial.map.write_hashed(position)
    return partial.map.matches_check(chunk, hasher.copy().digest())


def hash_piece(hasher: Hasher, descriptor: int, position: int, end: int) -> int:
    """Hash a piece of a file from `position` on, not beyond `end`; returns the new position. Blocks.

    Raises:
        StorageError: the file could not be read back.
    """
    piece = read_piece(descriptor, position, end - position)
    hasher.update(piece)
    return position + len(piece)


def read_piece(descriptor: int, position: int, count: int) -> bytes:
    """Read at least one and at most `count` bytes of a partial file. Blocks.

    Raises:
        StorageError: the file could not be read back.
    """
    try:
        piece = os.pread(descriptor, min(_READ_BYTES, count), position)
    except OSError as error:
        raise StorageError(f"reading back a partial file: {error.strerror or error}", "io") from error
    if not piece:
        raise StorageError("reading back a partial file: it ends before the bytes that were written", "io")
    return piece
