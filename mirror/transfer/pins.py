"""Open files of blobs: what is evicted or purged before it is sent can still be read."""

from __future__ import annotations

import resource
from typing import Final

from mirror.core.digest import Digest
from mirror.errors import StorageError
from mirror.storage.blobs import BlobFiles, CachedBlob

_MAX_PINS: Final = 4096
# Of the descriptors that this process may open; the others are for clients.
_SHARE: Final = 16


class Pins:
    """The pinned blobs of one bundle.

    A bundle of very many blobs has only the first ones pinned; the others are opened when they are sent.
    """

    def __init__(self, files: BlobFiles, limit: int | None = None) -> None:
        self._files = files
        self._limit = min(_MAX_PINS, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // _SHARE) if limit is None else limit
        self._pinned: dict[Digest, CachedBlob] = {}

    def pin(self, digest: Digest) -> int | None:
        """Pin a blob if there is room for it, and return its bytes; None if it is not held.

        Raises:
            StorageError: no descriptor is left.
        """
        pinned = self._pinned.get(digest)
        if pinned is not None:
            return pinned.size
        if len(self._pinned) >= self._limit:
            return self._files.size(digest)
        held = self._files.open(digest)
        if held is None:
            return None
        self._pinned[digest] = held
        return held.size

    def take(self, digest: Digest, size: int) -> CachedBlob:
        """Return a blob for sending. The caller closes it.

        Raises:
            StorageError: it was not pinned, and has left the store.
        """
        held = self._pinned.pop(digest, None) or self._files.open(digest)
        if held is not None and held.size == size:
            return held
        if held is not None:
            held.close()
        raise StorageError(f"{digest} has left the store meanwhile", "io")

    def close(self) -> None:
        """Close all files."""
        for held in self._pinned.values():
            held.close()
        self._pinned.clear()
