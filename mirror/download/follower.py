"""Follows another process that completes a blob, and serves what arrives meanwhile."""

from __future__ import annotations

import asyncio
import math

from mirror.core.digest import Digest
from mirror.download.chunk_map import Fate
from mirror.download.fetcher import Fetcher
from mirror.download.partial import Partial
from mirror.download.services import DownloadServices
from mirror.download.shares import Readers
from mirror.download.states import Committed
from mirror.errors import DigestMismatch, FlushFailed, StorageError
from mirror.storage.coordination import wait

_MAX_PAUSE_S = 0.03
# Until the first byte, for which clients and other nodes wait, the map is read more often.
_FIRST_BYTE_PAUSE_S, _FIRST_BYTE_TIMEOUT_S = 0.003, 5.0


class Follower:
    """Waits for the driver of a partial file in another process.

    Args:
        fetcher: fetches what readers in this process wait for, and everything if the driver is lazy and this process is not.
        readers: those in this process; the driver sees whether clients are among them.
    """

    def __init__(self, partial: Partial, fetcher: Fetcher, services: DownloadServices, readers: Readers) -> None:
        self._partial = partial
        self._fetcher = fetcher
        self._services = services
        self._readers = readers
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + services.limits.stall_s
        self._is_driver = False
        self._seen = (-1, -1, Fate.OPEN)

    async def run(self) -> Committed | None:
        """Return when the other process has committed the blob; None if this one has to continue.

        It has to when it has acquired the driver lock, or when the file was discarded before anything of it was seen here.

        Raises:
            MirrorError: the other process hangs, or has discarded the file.
        """
        await wait(self._has_begun, _FIRST_BYTE_TIMEOUT_S, _FIRST_BYTE_PAUSE_S)
        await wait(self._has_ended, math.inf, _MAX_PAUSE_S)
        return None if self._is_driver else self._ended(self._partial.digest)

    def _has_begun(self) -> bool:
        return self._has_ended() or self._partial.map.received() > 0

    def _has_ended(self) -> bool:
        """Look once: whether this process is the driver now, or the file has lost its name; raises like `run`."""
        partial, limits, now = self._partial, self._services.limits, self._loop.time()
        if not partial.is_current():
            return True
        if partial.try_acquire_driver() and partial.is_current():
            partial.show_readers(False)
            self._is_driver = True
            return True
        partial.show_readers(bool(self._readers.clients))
        if self._progressed():
            self._deadline = now + (limits.flush_s if partial.is_verified else limits.stall_s)
            partial.announce()
        self._fetcher.fetch_beside()
        if self._fetcher.failure is not None:
            raise self._fetcher.failure
        if now > self._deadline and not self._fetcher.is_lazy:
            # The lock cannot be taken away: readers go on past the store.
            raise StorageError(f"another worker makes no progress with {partial.digest}", "busy")
        return False

    def _progressed(self) -> bool:
        """Read the map; whether bytes have arrived or were hashed, or have been verified, since the last time."""
        partial = self._partial
        is_valid = partial.refresh()
        if is_valid and partial.map.fate is Fate.VERIFIED:
            partial.is_verified = True
        seen, self._seen = self._seen, (partial.map.received(), partial.map.hashed, partial.map.fate)
        return seen != self._seen

    def _ended(self, digest: Digest) -> Committed | None:
        """What has become of the file, which has lost its name; None if nothing of it was seen here.

        Raises:
            MirrorError: it was discarded.
        """
        partial = self._partial
        is_valid, fate = partial.refresh(), partial.map.fate
        if is_valid and fate is Fate.VERIFIED:
            # Whether it is still held or has been removed since.
            assert partial.map.size is not None
            return Committed(partial.map.size, fetched=False)
        size = self._services.files.size_if_same(digest, partial.descriptor)
        if size is not None:
            # The map was opened too late: it is not the one that belonged to these bytes.
            return Committed(size, fetched=False)
        if fate is Fate.NO_ROOM:
            raise StorageError(f"another worker had no room for {digest}", "full")
        if fate is Fate.LOST:
            raise FlushFailed(f"another worker could not get {digest} onto the disk", "io")
        if partial.map.received() and fate is Fate.WRONG:
            # Readers may have had some of them.
            raise DigestMismatch(f"what had arrived of {digest} at another worker was wrong")
        if partial.map.received():
            raise StorageError(f"what had arrived of {digest} was cleared away", "busy")
        return None
