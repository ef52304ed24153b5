"""Hashes a cached blob after a client fetched it twice in a row: a damaged one would remain a hit until the next scrub."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import structlog

from mirror.core.digest import Digest
from mirror.errors import StorageError
from mirror.maintenance.repeats import Repeats
from mirror.maintenance.scrub import Pace, Scrub

log = structlog.get_logger(__name__)

# Hashes a usual layer in some seconds, and leaves most of the disk and the processor to requests.
_RATE_BYTES_PER_S = 64 << 20
# Further blobs are checked after their next repeat.
_MAX_WAITING = 64


class _Stopped(Exception):
    """The mirror stops during a check."""


class Recheck:
    """Checks blobs one after the other in a thread of its own; no answer waits for it.

    Args:
        scrub: hashes a blob and deletes it if it is damaged.
        repeats: which blobs clients have fetched lately, known to all workers.

    Attributes:
        waiting: the blobs whose check has not begun.
    """

    def __init__(self, scrub: Scrub, repeats: Repeats) -> None:
        self._scrub = scrub
        self._repeats = repeats
        self.waiting: deque[Digest] = deque()
        self._wake = asyncio.Event()
        self._stopping = threading.Event()

    def begins(self, digest: Digest, client: str) -> None:
        """Note that a client requests a whole cached blob; schedules a check after a repeat."""
        if self._repeats.is_repeated(digest, client) and len(self.waiting) < _MAX_WAITING and self._repeats.claim_check(digest):
            self.waiting.append(digest)
            self._wake.set()

    def served(self, digest: Digest, client: str) -> None:
        """Note that a client has received a whole cached blob."""
        self._repeats.served(digest, client)

    async def run(self) -> None:
        """Run scheduled checks until cancelled; a running one ends within a moment."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="recheck")
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self.waiting:
                    await loop.run_in_executor(thread, self._check, self.waiting.popleft())
        finally:
            self._stopping.set()
            await asyncio.to_thread(thread.shutdown)

    def _check(self, digest: Digest) -> None:
        pace = Pace(_RATE_BYTES_PER_S)

        def paced(count: int) -> None:
            pace(count)
            if self._stopping.is_set():
                raise _Stopped

        try:
            self._scrub.check(digest, paced, keep_cached=True)
        except _Stopped:
            pass
        except (OSError, StorageError) as error:
            log.error("recheck_failed", digest=str(digest), cause=str(error))
        except Exception:
            # A failure must not end all further checks.
            log.exception("recheck_failed", digest=str(digest))
