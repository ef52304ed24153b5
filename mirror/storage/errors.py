"""What the file system says when it cannot, in the words of the domain."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

from mirror.errors import StorageError

_REASONS = {errno.ENOSPC: "full", errno.EDQUOT: "full", errno.EFBIG: "full", errno.EROFS: "read_only"}


@contextlib.contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turn an OSError of a write into a StorageError that says what was being done."""
    try:
        yield
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, "io")
        raise StorageError(f"{doing}: {error.strerror or error}", reason) from error
