"""The kernel's page cache: whether bytes of a file are in memory, reading them in, writing them back, and flushing names."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os

# One byte stands for a piece of this size: the kernel reads ahead and reclaims memory in pieces that are not much smaller.
_PROBE_BYTES = 512 << 10
# One byte is read in each piece of this size, after readahead has begun for all.
_TOUCH_BYTES = 64 << 10
# linux/fs.h
_SYNC_FILE_RANGE_WRITE = 2


def resident_until(descriptor: int, start: int, stop: int) -> int:
    """Return the end of the bytes from `start` on that are in memory; `stop` if the file system does not report that.

    Costs less than a microsecond for each piece in memory (preadv2(2), RWF_NOWAIT).
    """
    byte = [bytearray(1)]
    position = start
    try:
        while position < stop:
            os.preadv(descriptor, byte, position, os.RWF_NOWAIT)
            position += _PROBE_BYTES - position % _PROBE_BYTES
        os.preadv(descriptor, byte, stop - 1, os.RWF_NOWAIT)
    except OSError as error:
        # Reading reports any other error.
        last = stop - 1 - (stop - 1) % _PROBE_BYTES
        return max(start, min(position, last)) if error.errno == errno.EAGAIN else stop
    return stop


def read_resident(descriptor: int, start: int, stop: int) -> bytes | None:
    """The bytes from `start` to `stop` if they can be read without waiting for the disk, else None."""
    if start == stop:
        return b""
    data = bytearray(stop - start)
    try:
        count = read_resident_into(descriptor, data, start)
    except OSError:
        return None
    return bytes(data) if count == len(data) else None


def read_resident_into(descriptor: int, buffer: bytearray | memoryview, start: int) -> int | None:
    """Read the bytes from `start` on that are in memory; wait for the disk only where the file system cannot tell.

    Returns:
        how many bytes were read; 0 at the end of the file; None if the first one is not in memory.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        return os.preadv(descriptor, [buffer], start, os.RWF_NOWAIT)
    except BlockingIOError:
        return None
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
    return os.preadv(descriptor, [buffer], start)


def bring_in(descriptor: int, start: int, stop: int, ahead: int) -> None:
    """Read bytes from the disk into memory, and start readahead up to `ahead`. Blocks."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(descriptor, start, ahead - start, os.POSIX_FADV_WILLNEED)
        for position in (*range(start, stop, _TOUCH_BYTES), stop - 1):
            os.pread(descriptor, 1, position)


def start_write_back(descriptor: int, start: int, length: int) -> None:
    """Start to write bytes to the disk, so that little is left to flush (sync_file_range(2)). May block.

    It does not wait for the writes, so it consumes no write error that fsync has to report.
    """
    with contextlib.suppress(AttributeError):
        _libc().sync_file_range(descriptor, ctypes.c_int64(start), ctypes.c_int64(length), _SYNC_FILE_RANGE_WRITE)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)


def flush_directory(path: str) -> None:
    """Have the names in a directory outlive a power loss (fsync(2)). Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
