"""Failures of the file system as errors of the store."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from mirror.errors import StorageError

_REASONS = {errno.ENOSPC: "full", errno.EDQUOT: "full", errno.EFBIG: "full", errno.EROFS: "read_only"}


@contextlib.contextmanager
def storage_errors(operation: str) -> Iterator[None]:
    """Turn an OSError into a StorageError that names the operation."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, "io")
        raise StorageError(f"{operation}: {error.strerror or error}", reason) from error
