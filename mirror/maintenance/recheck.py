"""Hashes a held blob behind a client that fetches it twice in a row: damaged, it would stay a hit until the next scrub."""

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

# Bytes per second: a layer of usual size in some seconds, with little taken from the requests that the disk and processor serve.
_RATE = 64 << 20
# Further ones wait for their next repeat.
_MAX_WAITING = 64


class _Stopped(Exception):
    """The mirror stops in the middle of a blob."""


class Recheck:
    """Checks blobs one after the other in a thread of its own; no answer waits for it.

    Args:
        scrub: hashes a blob and drops it if it is wrong.
        repeats: what the workers know of clients, together.
    """

    def __init__(self, scrub: Scrub, repeats: Repeats) -> None:
        self._scrub = scrub
        self._repeats = repeats
        self._waiting: deque[Digest] = deque()
        self._wake = asyncio.Event()
        self._stopping = threading.Event()

    def begins(self, digest: Digest, client: str) -> None:
        """A client asks for the whole of a held blob."""
        if self._repeats.is_repeated(digest, client) and len(self._waiting) < _MAX_WAITING and self._repeats.claim_check(digest):
            self._waiting.append(digest)
            self._wake.set()

    def served(self, digest: Digest, client: str) -> None:
        """A client was given the whole of a held blob."""
        self._repeats.served(digest, client)

    async def run(self) -> None:
        """Check what is asked for until cancelled; what is under way then ends within a moment."""
        thread = ThreadPoolExecutor(1, thread_name_prefix="recheck")
        loop = asyncio.get_running_loop()
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    await loop.run_in_executor(thread, self._check, self._waiting.popleft())
        finally:
            self._stopping.set()
            await asyncio.to_thread(thread.shutdown)

    def _check(self, digest: Digest) -> None:
        pace = Pace(_RATE)

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
            # One failure must not end the work for good.
            log.exception("recheck_failed", digest=str(digest))
