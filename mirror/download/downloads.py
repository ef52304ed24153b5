"""All ingests of this process: join the one that is under way, or start it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from functools import partial

import structlog

from mirror.core.digest import Digest
from mirror.download.ingest import Ingest
from mirror.download.partial import is_driven
from mirror.download.passthrough import PassthroughBody, PassthroughStream
from mirror.download.services import DownloadServices
from mirror.download.shares import Share, Shares
from mirror.download.source import Source
from mirror.download.states import Committed, Failed
from mirror.errors import DigestMismatch, DownloadAbandoned, StorageError
from mirror.throttled_log import ThrottledLog
from mirror.upstream.flights import FailureMemory

log = structlog.get_logger(__name__)


class Downloads:
    """At most one ingest per blob at a time.

    Args:
        shares: bounds what client addresses may begin.
        count: counts each result: `committed`, `digest_mismatch`, `failed` or `bypassed`.
    """

    def __init__(self, services: DownloadServices, shares: Shares, count: Callable[[str], None]) -> None:
        self.shares = shares
        self._services = services
        self._count = count
        self._active: dict[Digest, Ingest] = {}
        self._tasks: set[asyncio.Task[Committed | Failed]] = set()
        self._closing = False
        self._failures = FailureMemory()
        self._log = ThrottledLog(log)

    def __iter__(self) -> Iterator[Ingest]:
        return iter(list(self._active.values()))

    def __len__(self) -> int:
        return len(self._active)

    @property
    def readers(self) -> int:
        """Requests that read from an ingest just now."""
        return sum(ingest.readers for ingest in self._active.values())

    def find(self, digest: Digest) -> Ingest | None:
        """The ingest of a blob that is under way, or None."""
        ingest = self._active.get(digest)
        return None if ingest is None or ingest.is_stopped else ingest

    def has_partial(self, digest: Digest) -> bool:
        """Whether bytes of a blob lie on disk from an ingest that was interrupted or runs in another process."""
        return os.path.exists(self._services.layout.partial(digest))

    def is_under_way(self, digest: Digest) -> bool:
        """Whether this process has an ingest of a blob."""
        return self.find(digest) is not None

    def is_driven(self, digest: Digest) -> bool:
        """Whether a process fetches a blob just now."""
        return is_driven(self._services.layout, digest)

    def refuse_failing(self, source: Source) -> None:
        """Raise UpstreamError if ingests from a source have failed again and again until just now."""
        self._failures.refuse(source)

    def start(self, digest: Digest, source: Source, share: Share | None = None, *, retry: bool = True) -> Ingest:
        """Start an ingest that is not under way; it continues when its readers leave.

        Args:
            share: its place in the counts of the client that begins it; None if no client does.
            retry: whether to start a second one if this one meets a wrong digest.
        """
        ingest = self._active[digest] = Ingest(digest, source, self._services, share or Share(self.shares, None))
        ingest.task = asyncio.get_running_loop().create_task(ingest.run(), name=f"download {digest}")
        self._tasks.add(ingest.task)
        # Not in the task itself: one that is cancelled before its first step would not come to that.
        ingest.task.add_done_callback(partial(self._on_end, ingest, retry))
        return ingest

    def passthrough(self, digest: Digest, source: Source) -> PassthroughBody:
        """A blob past the store, for one reader, whatever is held or under way."""
        threads, limits = self._services.threads.serve, self._services.limits
        return PassthroughBody(PassthroughStream(digest, source, threads, limits.attempts, None), threads, limits.first_byte_s)

    async def close(self) -> None:
        """Stop all; what has arrived stays on disk for the next start."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_end(self, ingest: Ingest, retry: bool, task: asyncio.Task[Committed | Failed]) -> None:
        """Remove an ingest, count it, and start its second try, before its readers see its last state."""
        self._tasks.discard(task)
        if self._active.get(ingest.digest) is ingest:
            del self._active[ingest.digest]
        if task.cancelled():
            if not self._closing:
                fields = {"digest": str(ingest.digest), "received": ingest.received}
                self._log.log("info", "download_stopped", **fields, cause="nobody reads it")
            end: Committed | Failed = ingest.failed(DownloadAbandoned("the mirror is shutting down"))
        else:
            end = task.result()
            if not self._closing:
                self._record(ingest, end, retry)
        ingest.end(end)
        ingest.share.end()

    def _record(self, ingest: Ingest, end: Committed | Failed, retry: bool) -> None:
        if isinstance(end, Committed):
            if end.fetched:
                self._count("committed")
                self._failures.note(ingest.source, None)
                log.info("download_committed", digest=str(ingest.digest), size=end.size)
            return
        result = _result(end)
        self._count(result)
        digest, cause = str(ingest.digest), str(end.cause)
        self._log.log("warning", "download_failed", result, digest=digest, result=result, cause=cause)
        end.cause.is_logged = True
        if retry and result == "digest_mismatch" and not ingest.is_unread:
            ingest.source.penalize()
            ingest.successor = self.start(ingest.digest, ingest.source, ingest.share.another(), retry=False)
        else:
            self._failures.note(ingest.source, end.cause)


def _result(end: Failed) -> str:
    if isinstance(end.cause, DigestMismatch):
        return "digest_mismatch"
    return "bypassed" if isinstance(end.cause, StorageError) else "failed"
