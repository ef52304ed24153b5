"""The scrub: hashes what is held again, slowly and for ever, and drops what is no longer what its name says.

Also the verification of a whole store on demand. Blocks; belongs in a thread.
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
# Bytes per second of the background scrub: little enough not to be noticed on a disk that serves.
_BACKGROUND_RATE = 16 << 20
# One step of the background scrub begins no further blob after this time, in seconds.
_STEP = 2.0


class _Stopped(Exception):
    """The scrub is to end in the middle of a blob."""


class Pace:
    """Keeps a stream of bytes to a rate by sleeping."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._next = time.monotonic()

    def __call__(self, count: int) -> None:
        """So many bytes were read."""
        if self._rate <= 0:
            return
        self._next = max(self._next, time.monotonic() - 1.0) + count / self._rate
        time.sleep(max(0.0, self._next - time.monotonic()))


class Scrub:
    """Goes through the whole store once per interval, a shard at a time, and remembers over restarts where it was.

    Args:
        interval: seconds for the whole store; 0 for never.
        checked: told the result of each blob, `ok` or `wrong`.
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
        """End a step that is under way, within about a second; its blob is hashed anew another time."""
        self._stopping.set()

    def step(self, now: float) -> None:
        """Do a little of what is due at `now`, in seconds since the epoch."""
        if self._interval <= 0:
            return
        if not self._pending:
            shard, due = self._position(now)
            if now < due:
                return
            self._pending = [file.digest for file in self._files.walk(f"{shard:02x}")]
            self._position_after = f"{(shard + 1) % _SHARDS} {now + self._interval / _SHARDS}\n"
        pace, end = Pace(_BACKGROUND_RATE), time.monotonic() + _STEP

        def paced(count: int) -> None:
            pace(count)
            if self._stopping.is_set():
                raise _Stopped

        with contextlib.suppress(_Stopped):
            while self._pending and time.monotonic() < end:
                self.check(self._pending[-1], paced)
                self._pending.pop()
        if not self._pending:
            # Only now: a restart in the middle of a shard begins it again.
            self._cursor.touch(0o600)
            self._cursor.write_text(self._position_after)

    def check(self, digest: Digest, paced: Callable[[int], None], *, keep_cached: bool = False) -> bool:
        """Hash one held blob, and drop it if it is wrong; False if it was. May be called in several threads.

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
            # A time far ahead comes from a clock that was wrong, or from a longer interval.
            return int(shard) % _SHARDS, float(due) if float(due) <= now + self._interval / _SHARDS else now
        return 0, now
