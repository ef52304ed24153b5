"""Hashes stored blobs whose size upstream has not confirmed: after the index was lost, a stored blob may be truncated."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

import structlog

from mirror.aio import SingleFlight, UseCount, in_thread
from mirror.core.bounded_cache import BoundedCache
from mirror.core.digest import Digest
from mirror.errors import StorageError
from mirror.storage.blobs import BlobFiles, is_intact

log = structlog.get_logger(__name__)

_MAX_VERIFIED = 10_000
# More concurrent checks would slow down each other and the hits.
_MAX_CONCURRENT = 2


class _Stopped(Exception):
    """The mirror stops during a check."""


class IntegrityChecks:
    """Runs one check per blob, and a few at a time; a check continues when its waiters are cancelled.

    Args:
        executor: runs the checks.
        in_use: held during a check.
    """

    def __init__(self, files: BlobFiles, executor: Executor, in_use: UseCount) -> None:
        self._files = files
        self._executor = executor
        self._checks: SingleFlight[bool] = SingleFlight(in_use)
        # Sizes of intact blobs, for requests that come after the waiters have left.
        self._verified: BoundedCache[Digest, int] = BoundedCache(_MAX_VERIFIED)
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT)
        self._stopping = False

    async def is_intact(self, digest: Digest, size: int, timeout: float | None) -> bool:
        """Whether a stored blob matches its digest; a damaged one is deleted.

        Args:
            size: its present size in bytes.
            timeout: seconds; None waits for the end of the check.

        Raises:
            TimeoutError: the check goes on.
            StorageError: the blob is damaged and cannot be deleted.
        """
        if self._verified.get(digest) == size:
            return True
        async with asyncio.timeout(timeout):
            intact, _ = await self._checks.run(digest, lambda: self._check(digest, size))
        return intact

    async def close(self) -> None:
        """Cancel the running checks."""
        self._stopping = True
        await self._checks.close()

    async def _check(self, digest: Digest, size: int) -> bool:
        async with self._slots:
            try:
                intact = await in_thread(
                    self._executor, is_intact, self._files, digest, self._raise_if_stopping, keep_cached=True
                )
            except OSError:
                intact = False
            if intact is False:
                log.error("blob_damaged", digest=str(digest), consequence="dropped; it is fetched again")
                await in_thread(self._executor, self._files.delete, digest)
                if self._files.size(digest) is not None:
                    raise StorageError(f"{digest} has been damaged, and cannot be removed", "io")
            if intact:
                self._verified.put(digest, size)
            return bool(intact)

    def _raise_if_stopping(self, _: int) -> None:
        if self._stopping:
            raise _Stopped
