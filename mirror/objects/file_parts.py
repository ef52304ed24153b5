"""Parts of a held file for an upload. A large one is memory that is the kernel's page cache, so that nothing copies it."""

from __future__ import annotations

import mmap
import os
from typing import Final, TypeAlias

from mirror.errors import StorageError

Part: TypeAlias = bytes | mmap.mmap

# To map fewer bytes costs more than to copy them.
_MIN_MAPPED: Final = 256 << 10


def read_part(descriptor: int, start: int, length: int) -> Part:
    """Return a part of a file; blocks while the disk reads.

    Args:
        start: a multiple of the page size.

    Raises:
        StorageError: the file has become shorter.
        OSError: the disk cannot be read.
    """
    if length >= _MIN_MAPPED:
        return _mapped(descriptor, start, length)
    data = os.pread(descriptor, length, start)
    if len(data) != length:
        raise _shorter()
    return data


def _mapped(descriptor: int, start: int, length: int) -> mmap.mmap:
    # A page that cannot be read ends the process where it is used (SIGBUS); here it is an error.
    _read_in(descriptor, start, start + length)
    try:
        return mmap.mmap(descriptor, length, prot=mmap.PROT_READ, offset=start)
    except ValueError as error:
        raise _shorter() from error


def _read_in(descriptor: int, start: int, stop: int) -> None:
    """Read bytes of a file into the page cache: sendfile(2) to the null device copies nothing."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    try:
        while start < stop:
            count = os.sendfile(null, descriptor, start, stop - start)
            if not count:
                raise _shorter()
            start += count
    finally:
        os.close(null)


def _shorter() -> StorageError:
    return StorageError("the file has become shorter", "io")
