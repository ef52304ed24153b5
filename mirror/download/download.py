"""The download of one blob: a task of the service that no request owns. See the package for the theory."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable
from concurrent.futures import Executor
from io import FileIO

import structlog

from mirror.aio import Signal, in_thread
from mirror.core.digest import Digest
from mirror.download.filling import Filling
from mirror.download.partial import Partial
from mirror.download.source import Source
from mirror.download.verifier import verify
from mirror.download.workshop import Policy, Workshop
from mirror.errors import (
    DigestMismatch,
    DownloadAbandoned,
    MirrorError,
    StorageError,
    UpstreamNonsense,
    UpstreamTimeout,
)

log = structlog.get_logger(__name__)

# Held back until the digest has matched. One byte would do for correctness; a small blob is held back whole, so that its
# failure can still become a proper error answer.
_HELD_BACK = 64 << 10
# How often a follower looks at the map that another process writes, in seconds.
_FOLLOW_INTERVAL = 0.03


class State(enum.IntEnum):
    """States only grow."""

    CONNECTING = 1
    """The size is not known yet."""
    FILLING = 2
    """Bytes arrive; all but the last can be read as they do."""
    VERIFIED = 3
    """The digest matched; every byte can be read."""
    COMMITTED = 4
    """The blob is held under its name."""
    FAILED = 5
    """It ended without the blob; `cause` says why."""


class Download:
    """One blob on its way into the store.

    Attributes:
        state: how far it is.
        cause: why it FAILED.
        successor: a second try from scratch, if this one met a wrong digest.
        readers: how many read it just now.
        fetched: whether it was this one that fetched the blob, or had to see that it could not be fetched.
    """

    def __init__(self, digest: Digest, source: Source, workshop: Workshop) -> None:
        self.digest = digest
        self.source = source
        self.state = State.CONNECTING
        self.cause: MirrorError | None = None
        self.successor: Download | None = None
        self.readers = 0
        self.fetched = True
        self._workshop = workshop
        self._partial: Partial | None = None
        self._signal = Signal()
        self._verified = False
        self._held: int | None = None
        self._settle: Callable[[], None] = lambda: None
        self._filling: Filling | None = None

    def __repr__(self) -> str:
        return f"<Download {str(self.digest)[:19]} {self.state.name} {self.received}/{self.size}>"

    # ---- for readers

    @property
    def size(self) -> int | None:
        """Bytes of the blob, once known."""
        return self._partial.size if self._partial and self._partial.size is not None else self._held

    @property
    def policy(self) -> Policy:
        """The limits that this download keeps."""
        return self._workshop.policy

    @property
    def executor(self) -> Executor:
        """Threads for blocking file work."""
        return self._workshop.executor

    @property
    def received(self) -> int:
        """Bytes that have arrived, by this process's knowledge."""
        return self._partial.received() if self._partial else 0

    async def sized(self, deadline: float) -> int:
        """Wait until the size of the blob is known, but not beyond `deadline` of the event loop's time.

        Raises:
            MirrorError: the download failed first, or the deadline has come.
        """
        while self.size is None:
            await self._wait_until(deadline)
        return self.size

    async def ready(self, position: int, deadline: float) -> None:
        """Wait until the byte at `position` can be read, or until an empty blob is verified; raises like `sized`."""
        while self._visible(position) <= position and not self._is_right_without(position):
            self._want(position)
            await self._wait_until(deadline)

    async def readable(self, position: int) -> int:
        """Wait until bytes after `position` can be read, and return their end.

        Raises:
            MirrorError: the download failed before they came.
        """
        while (end := self._visible(position)) <= position:
            self._want(position)
            await self._wait(1.0)
        return end

    async def committed(self) -> None:
        """Wait until the blob is held under its name; raises MirrorError if it does not come to that."""
        while self.state is not State.COMMITTED:
            await self._wait(1.0)

    def open_file(self) -> FileIO:
        """A descriptor to read what `readable` says is there. The size must be known."""
        if self._held is None and self._partial is not None and not self._partial.is_closed:
            return self._partial.reader()
        held = self._workshop.files.open(self.digest)
        if held is None:
            raise self.cause or DownloadAbandoned(f"{self.digest} vanished from the store")
        return held.file

    def _want(self, position: int) -> None:
        if self._filling is not None and self.state is State.FILLING:
            self._filling.want(position)

    async def _wait_until(self, deadline: float) -> None:
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise UpstreamTimeout(f"no byte of {self.digest} within {self._workshop.policy.first_byte:g} s")
        await self._wait(min(left, 1.0))

    async def _wait(self, timeout: float) -> None:
        if self.cause is not None:
            raise self.cause
        await self._signal.wait(timeout)

    def _is_right_without(self, position: int) -> bool:
        """Whether there is no byte at `position` to wait for: the blob is empty, and that is what it should be."""
        return position == self.size and (self._verified or self._held is not None)

    def _visible(self, position: int) -> int:
        if self._held is not None:
            return self._held
        if self._partial is None or self._partial.size is None or isinstance(self.cause, DigestMismatch):
            return position
        size = self._partial.size
        limit = size if self._verified else size - min(size, _HELD_BACK)
        return min(self._partial.available(position), limit)

    # ---- the task

    async def run(self, settle: Callable[[], None]) -> None:
        """Bring the blob into the store. Ends COMMITTED or FAILED, never with an exception but cancellation.

        Args:
            settle: called in the last state, before the readers learn of it.
        """
        self._settle = settle
        try:
            await self._work()
        except MirrorError as error:
            self._fail(error)
        except asyncio.CancelledError:
            self.abandon()
            raise
        except Exception as error:
            log.exception("download_bug", digest=str(self.digest))
            self._fail(DownloadAbandoned(f"internal error: {error}"))
        finally:
            if self._filling is not None:
                await self._filling.close()
            if self._partial is not None:
                self._partial.close()

    def abandon(self) -> None:
        """Let the readers know that nothing more will come."""
        self._fail(DownloadAbandoned("the mirror is shutting down"))

    async def _work(self) -> None:
        partial, filling = await self._open()
        loop = asyncio.get_running_loop()
        deadline, seen = loop.time() + self._workshop.policy.stall, -1
        # Another process drives it: watch, until it is committed or its driver lock is ours.
        while not (partial.drive() and partial.is_current()):
            if not partial.is_current():
                if self._was_committed(partial):
                    return
                if partial.had_no_room():
                    raise StorageError(f"another worker had no room for {self.digest}", "full")
                if partial.received():
                    # Readers may have had some of the bytes that were thrown away.
                    raise DigestMismatch(f"another worker threw away what had arrived of {self.digest}")
                partial, filling = await self._open()
                continue
            if partial.refresh() and (received := partial.received()) != seen:
                deadline, seen = loop.time() + self._workshop.policy.stall, received
                self._reach(State.FILLING)
            if loop.time() > deadline:
                # It hangs, and nobody can take its lock from it: readers go on past the store.
                raise StorageError(f"another worker makes no progress with {self.digest}", "busy")
            await asyncio.sleep(_FOLLOW_INTERVAL)
        await self._drive(partial, filling)

    async def _open(self) -> tuple[Partial, Filling]:
        """Open what there is of the blob, in place of what was open before."""
        if self._filling is not None:
            await self._filling.close()
        partial = await in_thread(self._workshop.executor, self._open_partial)
        self._filling = Filling(partial, self.source, self._workshop, self._signal, self._progressed)
        return partial, self._filling

    def _open_partial(self) -> Partial:
        if self._partial is not None:
            self._partial.close()
        # Kept by the thread itself, so that a cancellation cannot lose it.
        self._partial = Partial(self._workshop.layout, self._workshop.files.room, self.digest)
        return self._partial

    def _was_committed(self, partial: Partial) -> bool:
        """Whether another process has made exactly this file the blob: then, and only then, its bytes have been verified."""
        size = self._workshop.files.size_if_same(self.digest, partial.descriptor)
        if size is None:
            return False
        if not partial.refresh():
            # The map was opened too late: it is not the one that belonged to these bytes.
            self._held = size
        self.fetched = False
        self._reach(State.VERIFIED)
        self._reach(State.COMMITTED)
        return True

    async def _drive(self, partial: Partial, filling: Filling) -> None:
        if (held := self._workshop.files.size(self.digest)) is not None:
            await in_thread(self._workshop.executor, partial.discard)
            self._held = held
            self.fetched = False
            self._reach(State.COMMITTED)
            return
        if await in_thread(self._workshop.executor, partial.refresh):
            if partial.received():
                self._workshop.resumed("restart")
            self._reach(State.FILLING)
        verifier = asyncio.get_running_loop().create_task(self._verify(partial))
        try:
            await filling.fill()
            await verifier
        except MirrorError as error:
            # Bytes that go with nothing upstream says would stand in the way of every later download, and those of a blob that
            # does not fit in the way of everything else.
            for_room = isinstance(error, StorageError) and error.reason != "busy"
            if for_room or isinstance(error, UpstreamNonsense) or not partial.received():
                await in_thread(self._workshop.executor, partial.discard, for_room=for_room)
            raise
        finally:
            verifier.cancel()
            await asyncio.gather(verifier, return_exceptions=True)
        self._reach(State.VERIFIED)
        await in_thread(self._workshop.executor, self._workshop.files.adopt, partial.path, partial.descriptor, self.digest)
        partial.forget_map()
        self._reach(State.COMMITTED)

    async def _verify(self, partial: Partial) -> None:
        while partial.size is None:
            await self._signal.wait(1.0)

        async def arrived(position: int) -> int:
            while (end := partial.available(position)) <= position:
                await self._signal.wait(1.0)
            return end

        with partial.reader() as file:
            await verify(self.digest, partial.size, file, arrived, self._workshop.executor)

    # ---- states

    def _progressed(self) -> None:
        if self.state < State.FILLING:
            self.state = State.FILLING
        self._signal.pulse()

    def _reach(self, state: State) -> None:
        self.state = max(self.state, state)
        self._verified = self._verified or state in (State.VERIFIED, State.COMMITTED)
        if state is State.COMMITTED:
            self._settle()
        self._signal.pulse()

    def _fail(self, cause: MirrorError) -> None:
        self.cause = cause
        self.state = State.FAILED
        self._settle()
        self._signal.pulse()
