"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from typing import BinaryIO

from mirror.storage.page_cache import flush_directory

STDOUT = "-"


@contextlib.contextmanager
def whole_file(name: str) -> Iterator[BinaryIO]:
    """Open a file for writing. Another one of that name stays until the context ends without an error.

    Standard output, a pipe or a device is written as it is.

    Raises:
        OSError: it cannot be written; perhaps only when the context ends.
    """
    if name == STDOUT:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
    elif _is_stream(name):
        with open(name, "wb") as file:
            yield file
    else:
        with _replacing(os.path.realpath(name)) as file:
            yield file


@contextlib.contextmanager
def _replacing(path: str) -> Iterator[BinaryIO]:
    if os.path.isdir(path):
        raise IsADirectoryError(None, "it is a directory")
    directory, name = os.path.split(path)
    descriptor, temporary = tempfile.mkstemp(dir=directory, prefix=f".{name[:100]}.")
    try:
        with open(descriptor, "wb") as file:
            os.fchmod(descriptor, 0o666 & ~_umask())
            yield file
            file.flush()
            os.fsync(descriptor)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    flush_directory(directory)


def _is_stream(name: str) -> bool:
    try:
        mode = os.stat(name).st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _umask() -> int:
    # It can only be read by setting it; a command has one thread at this point that makes files.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
