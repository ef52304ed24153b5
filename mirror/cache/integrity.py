"""Hashes held blobs before they are served, where nobody vouches for them: after the index was lost, a blob may be cut short."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

import structlog

from mirror.aio import SingleFlight, UseCount, in_thread
from mirror.core.digest import Digest
from mirror.errors import StorageError
from mirror.storage.blobs import BlobFiles, is_intact

log = structlog.get_logger(__name__)

_MAX_KNOWN = 10_000
# More at once would only take the disk from each other, and from what is served.
_MAX_AT_ONCE = 2


class _Stopped(Exception):
    """The mirror stops in the middle of a blob."""


class IntegrityChecks:
    """One check per blob at a time, a few at once; a check goes on when those who wait for it leave.

    Args:
        threads: that read and hash.
        in_use: held while a check is under way.
    """

    def __init__(self, files: BlobFiles, threads: Executor, in_use: UseCount) -> None:
        self._files = files
        self._threads = threads
        self._checks: SingleFlight[bool] = SingleFlight(in_use)
        # Bytes of those that were right: whoever asked may have left before that was known.
        self._known: dict[Digest, int] = {}
        self._turns = asyncio.Semaphore(_MAX_AT_ONCE)
        self._stopping = False

    async def is_intact(self, digest: Digest, size: int, timeout: float | None) -> bool:
        """Whether a held blob has its digest; one that has not is dropped.

        Args:
            size: bytes that it has now.
            timeout: seconds to wait, None for as long as it takes.

        Raises:
            TimeoutError: it is not known yet.
            StorageError: it has been damaged, and cannot be removed.
        """
        if self._known.get(digest) == size:
            return True
        async with asyncio.timeout(timeout):
            intact, _ = await self._checks.run(digest, lambda: self._check(digest, size))
        return intact

    async def close(self) -> None:
        """End what is under way."""
        self._stopping = True
        await self._checks.close()

    async def _check(self, digest: Digest, size: int) -> bool:
        async with self._turns:
            try:
                intact = await in_thread(self._threads, is_intact, self._files, digest, self._go_on, keep_cached=True)
            except OSError:
                intact = False
            if intact is False:
                log.error("blob_damaged", digest=str(digest), consequence="dropped; it is fetched again")
                await in_thread(self._threads, self._files.delete, digest)
                if self._files.size(digest) is not None:
                    raise StorageError(f"{digest} has been damaged, and cannot be removed", "io")
            if intact:
                if len(self._known) >= _MAX_KNOWN:
                    self._known.clear()
                self._known[digest] = size
            return bool(intact)

    def _go_on(self, _: int) -> None:
        if self._stopping:
            raise _Stopped
