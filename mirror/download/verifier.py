"""The verifier: one more reader of a blob in the making, who hashes it."""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from typing import Protocol

from mirror.download.partial import CHUNK, Partial
from mirror.errors import DigestMismatch, StorageError

_PIECE = 256 << 10


class Hasher(Protocol):
    """A running hash."""

    def update(self, data: bytes, /) -> None: ...
    def digest(self) -> bytes: ...
    def hexdigest(self) -> str: ...
    def copy(self) -> Hasher: ...


async def verify(partial: Partial, arrived: Callable[[int], Awaitable[int]], executor: Executor) -> None:
    """Hash the bytes of a blob of known size from 0 as they arrive, and return when all of them have its digest.

    How far it has come is written into the map, and what all up to each chunk's end hashes to.

    Args:
        arrived: waits until there are bytes after a position, and returns the end of what can be read.

    Raises:
        DigestMismatch: they have another one.
        StorageError: the file could not be read back.
    """
    digest, size = partial.digest, partial.size
    assert size is not None
    hasher = digest.hasher()
    position = 0
    while position < size:
        end = await arrived(position)
        position = await partial.in_thread(executor, _hash_and_tell, partial, hasher, position, end)
    if hasher.hexdigest() != digest.encoded:
        raise DigestMismatch(f"{size} bytes that should be {digest} are {digest.algorithm}:{hasher.hexdigest()}")


def _hash_and_tell(partial: Partial, hasher: Hasher, position: int, end: int) -> int:
    # Not beyond the chunk: what all up to its end hashes to is wanted.
    position = hash_piece(hasher, partial.descriptor, position, min(end, position - position % CHUNK + CHUNK))
    with contextlib.suppress(OSError):
        partial.map.tell_hashed(position)
        if position % CHUNK == 0:
            partial.map.note_check(position // CHUNK - 1, hasher.copy().digest())
    return position


async def rehash(partial: Partial, executor: Executor) -> None:
    """After a power loss: hash again what the map vouches for, believe in it as far as that agrees with the map, forget the rest.

    For the driver. Does nothing if the map is of this boot, or there is none.

    Raises:
        StorageError: the file could not be read.
    """
    marks = partial.doubtful()
    if marks is None:
        return
    hasher, right = partial.digest.hasher(), 0
    while right < len(marks) and marks[right] == CHUNK:
        if not await partial.in_thread(executor, _rehash_chunk, partial, hasher, right):
            break
        right += 1
    marks[right:] = array("I", bytes(4 * (len(marks) - right)))
    await partial.in_thread(executor, partial.believe, marks)


def _rehash_chunk(partial: Partial, hasher: Hasher, chunk: int) -> bool:
    """Whether a chunk is what it was."""
    position, end = chunk * CHUNK, chunk * CHUNK + CHUNK
    while position < end:
        position = hash_piece(hasher, partial.descriptor, position, end)
    with contextlib.suppress(OSError):
        partial.map.tell_hashed(position)
    return partial.map.checks(chunk, hasher.copy().digest())


def hash_piece(hasher: Hasher, descriptor: int, position: int, end: int) -> int:
    """Hash a piece of a file from `position` on, not beyond `end`; returns the new position. Blocks.

    Raises:
        StorageError: the file could not be read back.
    """
    try:
        piece = os.pread(descriptor, min(_PIECE, end - position), position)
    except OSError as error:
        raise StorageError(f"reading back a partial file: {error.strerror or error}", "io") from error
    if not piece:
        raise StorageError("reading back a partial file: it ends before the bytes that were written", "io")
    hasher.update(piece)
    return position + len(piece)
