"""The blobs of an earlier bundle, so that a later one can leave them out."""

from __future__ import annotations

import os
import tarfile
import zlib
from typing import Final

from mirror.core.digest import Digest
from mirror.transfer.layout import DOCKER_FILE, INDEX_FILE, blob_digest

# A tar of so many members is no bundle.
_MAX_MEMBERS: Final = 200_000


def earlier_blobs(path: str) -> set[Digest]:
    """Return the digests that name members of a tar, plain or compressed. The content is not read.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no whole bundle; the message says why.
    """
    found: set[Digest] = set()
    names: set[str] = set()
    try:
        with tarfile.open(path, "r:*") as tar:
            for number, member in enumerate(tar):
                if number >= _MAX_MEMBERS:
                    raise ValueError(f"it has more than {_MAX_MEMBERS} members")
                name = os.path.normpath(member.name)
                digest = blob_digest(name) if member.isreg() else None
                if digest is not None:
                    found.add(digest)
                elif name in (INDEX_FILE, DOCKER_FILE):
                    names.add(name)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise ValueError(f"it is no tar, or was cut: {str(error).partition(chr(10))[0]}") from error
    if not names:
        raise ValueError(f"it has neither {INDEX_FILE} nor {DOCKER_FILE}: it is no bundle, or was cut")
    if not found:
        raise ValueError("none of its members has a digest as its name, as blobs of an OCI image layout have")
    return found
