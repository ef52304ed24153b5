"""The registry that a file of the store counts for: an extended attribute, which is renamed and removed with the file.

A blob counts for the registry through which it was fetched first, also if other registries use it. So the space of all
registries together is the space of the store, and no index is needed to know it. This imports next to nothing, because a scan
of the store imports it.
"""

from __future__ import annotations

import errno
import os

_ATTRIBUTE = "user.registry-mirror.registry"
_UNSUPPORTED = frozenset({errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS})


def keeps_owners(directory: str) -> bool:
    """Whether the file system of a directory keeps extended attributes (xattr(7), user namespace)."""
    try:
        os.setxattr(directory, _ATTRIBUTE, b"")
    except OSError as error:
        return error.errno not in _UNSUPPORTED
    return True


def set_owner(file: str | int, registry: str) -> None:
    """Make a file count for a registry.

    Args:
        file: a path or a descriptor.

    Raises:
        OSError: the attribute cannot be written.
    """
    os.setxattr(file, _ATTRIBUTE, registry.encode())


def owner_of(file: str | int) -> str | None:
    """Return the registry that a file counts for; None if none is recorded or the file is gone."""
    try:
        return os.getxattr(file, _ATTRIBUTE).decode(errors="replace") or None
    except OSError:
        return None
