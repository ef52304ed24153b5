"""All downloads of this process: join the one that is under way, or start it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator

import structlog

from mirror import demand
from mirror.core.digest import Digest
from mirror.download.download import Download, State
from mirror.download.passthrough_body import PassthroughBody
from mirror.download.passthrough_stream import PassthroughStream
from mirror.download.services import DownloadServices
from mirror.download.shares import Share, Shares
from mirror.download.source import Source
from mirror.errors import DigestMismatch, StorageError
from mirror.throttled_log import ThrottledLog
from mirror.upstream.flights import FailureMemory

log = structlog.get_logger(__name__)


class Downloads:
    """At most one download per blob at a time.

    Args:
        shares: bounds what client addresses may begin.
        ended: told the result of each: `committed`, `digest_mismatch`, `failed` or `bypassed`.
    """

    def __init__(self, services: DownloadServices, shares: Shares, ended: Callable[[str], None]) -> None:
        self.shares = shares
        self._services = services
        self._ended = ended
        self._active: dict[Digest, Download] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped: set[Download] = set()
        self._closing = False
        self._failures = FailureMemory()
        self._log = ThrottledLog(log)

    def __iter__(self) -> Iterator[Download]:
        return iter(list(self._active.values()))

    def __len__(self) -> int:
        return len(self._active)

    @property
    def readers(self) -> int:
        """Requests that read from a download just now."""
        return sum(download.readers for download in self._active.values())

    def find(self, digest: Digest) -> Download | None:
        """The download of a blob that is under way, or None."""
        return self._active.get(digest)

    def has_partial(self, digest: Digest) -> bool:
        """Whether bytes of a blob lie on disk from a download that was interrupted or runs in another process."""
        return os.path.exists(self._services.layout.partial(digest))

    def refuse_failing(self, source: Source) -> None:
        """Raise UpstreamError if downloads from a source have failed again and again until just now."""
        self._failures.refuse(source)

    def start(self, digest: Digest, source: Source, share: Share | None = None, *, retry: bool = True) -> Download:
        """Start a download that is not under way; it is nobody's and goes on when its readers leave.

        Args:
            share: its place in the counts of the client that begins it; None if no client does.
        """
        download = Download(digest, source, self._services, share or Share(self.shares, None))
        self._active[digest] = download
        task = asyncio.get_running_loop().create_task(self._run(download, retry), name=f"download {digest}")
        self._tasks.add(task)
        download.stop = lambda: self._stop(download, task)
        # Not by the task itself: if it is cancelled before its first step, it never comes to that.
        task.add_done_callback(lambda ended: self._end(download, ended))
        return download

    def passthrough(self, digest: Digest, source: Source) -> PassthroughBody:
        """A blob past the store, for one reader, whatever is held or under way."""
        threads, policy = self._services.threads.serve, self._services.policy
        return PassthroughBody(PassthroughStream(digest, source, threads, policy.attempts, None), threads, policy.first_byte)

    async def close(self) -> None:
        """Stop all; what has arrived stays on disk for the next start."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for download in self:
            # A task that is cancelled before its first step never comes to telling its readers.
            download.abandon()
            self._forget(download)

    def _end(self, download: Download, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._stopped.discard(download)
        download.share.end()

    def _stop(self, download: Download, task: asyncio.Task[None]) -> None:
        """End one that nobody reads; what has arrived stays on disk for whoever asks next."""
        self._log.tell(
            "info", "download_stopped", digest=str(download.digest), received=download.received, cause="nobody reads it"
        )
        self._forget(download)
        self._stopped.add(download)
        task.cancel()

    async def _run(self, download: Download, retry: bool) -> None:
        demand.urgency.set(lambda: download.urgency)
        try:
            with download.source.held():
                await download.run(lambda: self._on_finished(download, retry))
        finally:
            self._forget(download)

    def _on_finished(self, download: Download, retry: bool) -> None:
        """Called when a download has reached its last state, before its readers learn of it."""
        self._forget(download)
        if self._closing or download in self._stopped:
            return
        if not download.fetched:
            return
        result = _result(download)
        self._ended(result)
        retry = retry and result == "digest_mismatch"
        if not retry:
            self._failures.note(download.source, download.cause)
        if result == "committed":
            log.info("download_committed", digest=str(download.digest), size=download.size)
            return
        digest, cause = str(download.digest), str(download.cause)
        self._log.tell("warning", "download_failed", result, digest=digest, result=result, cause=cause)
        if retry:
            download.source.penalize()
            download.successor = self.start(download.digest, download.source, download.share.another(), retry=False)

    def _forget(self, download: Download) -> None:
        if self._active.get(download.digest) is download:
            del self._active[download.digest]


def _result(download: Download) -> str:
    if download.state is State.COMMITTED:
        return "committed"
    if isinstance(download.cause, DigestMismatch):
        return "digest_mismatch"
    return "bypassed" if isinstance(download.cause, StorageError) else "failed"
