"""The verifier: one more reader of a blob in the making, who hashes it."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from io import FileIO
from typing import Protocol

from mirror.aio import in_thread
from mirror.core.digest import Digest
from mirror.errors import DigestMismatch, StorageError

_PIECE = 256 << 10


class Hasher(Protocol):
    """A running hash."""

    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


async def verify(digest: Digest, size: int, file: FileIO, arrived: Callable[[int], Awaitable[int]], executor: Executor) -> None:
    """Hash the bytes of `file` from 0 as they arrive, and return when all of them have the digest.

    Args:
        arrived: waits until there are bytes after a position, and returns the end of what can be read.

    Raises:
        DigestMismatch: they have another one.
        StorageError: the file could not be read back.
    """
    hasher: Hasher = digest.hasher()
    position = 0
    while position < size:
        end = await arrived(position)
        position = await in_thread(executor, hash_piece, hasher, file.fileno(), position, end)
    if hasher.hexdigest() != digest.encoded:
        raise DigestMismatch(f"{size} bytes that should be {digest} are {digest.algorithm}:{hasher.hexdigest()}")


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
