"""The download of one blob: a task of the service that no request owns. See the package for the theory."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Executor
from io import FileIO

import structlog

from mirror.core.digest import Digest
from mirror.core.urgency import Urgency
from mirror.download.audience import Audience
from mirror.download.chunk_map import CHUNK
from mirror.download.ingest import Ingest, State
from mirror.download.services import DownloadServices, Policy
from mirror.download.shares import Share
from mirror.download.source import Source
from mirror.errors import DigestMismatch, DownloadAbandoned, MirrorError, UpstreamTimeout
from mirror.storage.coordination import reopened

__all__ = ["Download", "State"]

log = structlog.get_logger(__name__)

# Held back of a whole body until the digest has matched. One byte would do for correctness; a small blob is held back whole, so
# that its failure can still become a proper error answer.
_HELD_BACK = 64 << 10
# A reader far ahead, for whom nothing could be begun because somebody else was about to, asks again after so long.
_WANT_AGAIN_S = 0.25


class Download:
    """One blob on its way into the store.

    Attributes:
        state: how far it is.
        cause: why it FAILED.
        successor: a second try from scratch, if this one met a wrong digest.
        audience: who reads it just now.
        share: its place in the counts.
        stop: ends it, because nobody reads it and there are too many such downloads.
    """

    def __init__(self, digest: Digest, source: Source, services: DownloadServices, share: Share) -> None:
        self.digest = digest
        self.source = source
        self.state = State.CONNECTING
        self.cause: MirrorError | None = None
        self.successor: Download | None = None
        self.audience = Audience()
        self.share = share
        self.stop: Callable[[], None] = lambda: None
        self._services = services
        self._verified = self._ended = False
        self._on_finished: Callable[[], None] = lambda: None
        self._ingest = Ingest(digest, source, services, self._reach, lambda: bool(self.audience.clients))

    def __repr__(self) -> str:
        return f"<Download {str(self.digest)[:19]} {self.state.name} {self.received}/{self.size}>"

    # ---- for readers

    @property
    def urgency(self) -> Urgency:
        """How urgently its bytes are wanted just now, by the readers of all processes."""
        own, partial = self.audience.urgency, self._ingest.partial
        if own is not Urgency.CLIENT and partial is not None and partial.is_wanted_elsewhere():
            return Urgency.CLIENT
        return own

    @property
    def readers(self) -> int:
        """How many read it just now."""
        return len(self.audience)

    @property
    def size(self) -> int | None:
        """Bytes of the blob, once known."""
        partial, held = self._ingest.partial, self._ingest.held
        if held is not None:
            return held.size
        return partial.size if partial is not None else None

    @property
    def policy(self) -> Policy:
        """The limits that this download keeps."""
        return self._services.policy

    @property
    def threads(self) -> Executor:
        """Threads for reading the file."""
        return self._services.threads.serve

    @property
    def received(self) -> int:
        """Bytes that have arrived, by this process's knowledge."""
        return self._ingest.partial.received() if self._ingest.partial else 0

    @property
    def fetched(self) -> bool:
        """Whether it was this one that fetched the blob, or had to see that it could not be fetched."""
        return self._ingest.fetched

    def join(self, urgency: Urgency) -> None:
        """Begin to read: until `leave` the bytes stay, also if the blob is committed and purged meanwhile."""
        self.audience.join(urgency)
        if urgency is Urgency.CLIENT:
            self.share.read()

    def leave(self, urgency: Urgency) -> None:
        """Read no more; without readers it goes on."""
        self.audience.leave(urgency)
        if self._ended:
            if not self.audience and self._ingest.held is not None:
                self._ingest.held.close()
        elif urgency is Urgency.CLIENT and self._is_left() and not self.share.abandon() and not self.audience:
            self.stop()

    def _is_left(self) -> bool:
        """Whether no client reads what is still being fetched."""
        return not self.audience.clients and self.state < State.VERIFIED

    async def sized(self, deadline: float) -> int:
        """Wait until the size of the blob is known, but not beyond `deadline` of the event loop's time.

        Raises:
            MirrorError: the download failed first, or the deadline has come.
        """
        while self.size is None:
            await self._wait_until(deadline, None)
        return self.size

    async def ready(self, position: int, deadline: float, *, whole: bool) -> None:
        """Wait until the byte at `position` can be read, or until an empty blob is verified; raises like `sized`."""
        while self._visible(position, whole=whole) <= position and not self._is_right_without(position):
            self._want(position)
            await self._wait_until(deadline, position)

    async def readable(self, position: int, *, whole: bool) -> int:
        """Wait until bytes after `position` can be read, and return their end.

        Args:
            whole: for who reads from the first byte to the last, and takes the blob for right then: its end waits for the digest.

        Raises:
            MirrorError: the download failed before they came.
        """
        while (end := self._visible(position, whole=whole)) <= position:
            self._want(position)
            await self._wait(_WANT_AGAIN_S, position)
        return end

    async def committed(self) -> None:
        """Wait until the blob is held under its name; raises MirrorError if it does not come to that."""
        while self.state is not State.COMMITTED:
            await self._wait(1.0, None)

    def open_file(self) -> FileIO:
        """A descriptor to read what `readable` says is there. The size must be known."""
        partial, held = self._ingest.partial, self._ingest.held
        if held is not None:
            return FileIO(reopened(held.file.fileno(), os.O_RDONLY))
        if partial is None or partial.is_closed:
            raise self.cause or DownloadAbandoned(f"nothing of {self.digest} is left")
        return partial.reader()

    def _want(self, position: int) -> None:
        if self._ingest.coordinator is not None and self.state is State.FILLING:
            self._ingest.coordinator.want(position)

    async def _wait_until(self, deadline: float, position: int | None) -> None:
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise UpstreamTimeout(f"no byte of {self.digest} within {self._services.policy.first_byte:g} s")
        await self._wait(min(left, _WANT_AGAIN_S), position)

    async def _wait(self, timeout: float, position: int | None) -> None:
        """Wait for news of the chunk at a position, and of everything that concerns the whole."""
        if self.cause is not None:
            raise self.cause
        await self._ingest.signal.wait(timeout, None if position is None else position // CHUNK)

    def _is_right_without(self, position: int) -> bool:
        """Whether there is no byte at `position` to wait for: the blob is empty, and that is what it should be."""
        return position == self.size and (self._verified or self._ingest.held is not None)

    def _visible(self, position: int, *, whole: bool) -> int:
        ingest = self._ingest
        if ingest.held is not None:
            return ingest.held.size
        if ingest.partial is None or ingest.partial.size is None or ingest.lost or isinstance(self.cause, DigestMismatch):
            return position
        size = ingest.partial.size
        limit = size - min(size, _HELD_BACK) if whole and not self._verified else size
        return min(ingest.partial.available(position), limit)

    # ---- the task

    async def run(self, on_finished: Callable[[], None]) -> None:
        """Bring the blob into the store. Ends COMMITTED or FAILED, never with an exception but cancellation.

        Args:
            settle: called in the last state, before the readers learn of it.
        """
        self._on_finished = on_finished
        try:
            await self._ingest.run()
        except MirrorError as error:
            self._fail(error)
        except asyncio.CancelledError:
            self.abandon()
            raise
        except Exception as error:
            log.exception("download_bug", digest=str(self.digest))
            self._fail(DownloadAbandoned(f"internal error: {error}"))
        finally:
            self._ended = True
            await self._ingest.close(keep=self._verified and not self._ingest.lost and self.readers > 0)

    def abandon(self) -> None:
        """Let the readers know that nothing more will come."""
        self._fail(DownloadAbandoned("the mirror is shutting down"))

    # ---- states

    def _reach(self, state: State) -> None:
        self.state = max(self.state, state)
        self._verified = self._verified or state in (State.VERIFIED, State.COMMITTED)
        if state is State.COMMITTED:
            self._on_finished()
        self._ingest.signal.pulse()

    def _fail(self, cause: MirrorError) -> None:
        self.cause = cause
        self.state = State.FAILED
        self._on_finished()
        self._ingest.signal.pulse()
