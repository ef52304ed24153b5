"""The scrub: hashes all cached blobs again, slowly and repeatedly, and deletes those that do not match their digest.

It also verifies a whole store on demand. Blocks; belongs in a thread.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from mirror.core.digest import Digest
from mirror.storage.blobs import BlobFiles, is_intact
from mirror.storage.generation import Generation
from mirror.storage.layout import Layout

log = structlog.get_logger(__name__)

_SHARDS = 256
# Low enough not to disturb a disk that serves requests.
_BACKGROUND_BYTES_PER_S = 16 << 20
# A step starts no further blob after this time.
_STEP_S = 2.0


class _Stopped(Exception):
    """The scrub stops during a blob."""


class Pace:
    """Limits the rate of a stream of bytes by sleeping."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._next = time.monotonic()

    def __call__(self, count: int) -> None:
        """Sleep after `count` bytes."""
        if self._rate <= 0:
            return
        self._next = max(self._next, time.monotonic() - 1.0) + count / self._rate
        time.sleep(max(0.0, self._next - time.monotonic()))


class Scrub:
    """Checks the whole store once per interval, a shard at a time, and continues where it was after a restart.

    Args:
        interval: seconds for the whole store; 0 for never.
        checked: called with the result of each blob, `ok` or `wrong`.
    """

    def __init__(
        self, layout: Layout, files: BlobFiles, generation: Generation, interval: float, checked: Callable[[str], None]
    ) -> None:
        self._files = files
        self._generation = generation
        self._interval = interval
        self._checked = checked
        self._cursor = Path(layout.scrub_cursor)
        self._pending: list[Digest] = []
        self._position_after = ""
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End a running step within about a second; its blob is hashed again later."""
        self._stopping.set()

    def step(self, now: float) -> None:
        """Check a few of the blobs that are due at `now`, in seconds since the epoch."""
        if self._interval <= 0:
            return
        if not self._pending:
            shard, due = self._position(now)
            if now < due:
                return
            self._pending = [file.digest for file in self._files.walk(f"{shard:02x}")]
            self._position_after = f"{(shard + 1) % _SHARDS} {now + self._interval / _SHARDS}\n"
        pace, end = Pace(_BACKGROUND_BYTES_PER_S), time.monotonic() + _STEP_S

        def paced(count: int) -> None:
            pace(count)
            if self._stopping.is_set():
                raise _Stopped

        with contextlib.suppress(_Stopped):
            while self._pending and time.monotonic() < end:
                self.check(self._pending[-1], paced)
                self._pending.pop()
        if not self._pending:
            # Written at the end, so a restart during a shard repeats the shard.
            self._cursor.touch(0o600)
            self._cursor.write_text(self._position_after)

    def check(self, digest: Digest, paced: Callable[[int], None], *, keep_cached: bool = False) -> bool:
        """Hash a cached blob, and delete it if it is damaged; False if it was. May be called in several threads.

        Args:
            keep_cached: see `is_intact`.
        """
        try:
            intact = is_intact(self._files, digest, paced, keep_cached=keep_cached)
        except OSError as error:
            log.error("blob_unreadable", digest=str(digest), cause=str(error))
            intact = False
        if intact is False:
            log.error("blob_damaged", digest=str(digest), consequence="dropped; the next pull fetches it again")
            self._files.delete(digest)
            self._generation.change()
        if intact is not None:
            self._checked("ok" if intact else "wrong")
        return intact is not False

    def _position(self, now: float) -> tuple[int, float]:
        with contextlib.suppress(OSError, ValueError):
            shard, due = self._cursor.read_text().split()
            # A time far in the future comes from a wrong clock or a longer interval.
            return int(shard) % _SHARDS, float(due) if float(due) <= now + self._interval / _SHARDS else now
        return 0, now
