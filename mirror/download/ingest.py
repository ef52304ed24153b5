"""How one blob gets into the store: by filling its partial file, or by following another process that does."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Callable

from mirror.aio import Signal, opened_in_thread
from mirror.core.digest import Digest
from mirror.download.chunk_map import CHUNK, Fate
from mirror.download.coordinator import FetchCoordinator
from mirror.download.partial import Partial
from mirror.download.services import DownloadServices
from mirror.download.source import Source
from mirror.download.verifier import rehash, verify
from mirror.errors import DigestMismatch, FlushFailed, MirrorError, StorageError
from mirror.storage.blobs import BlobFiles, CachedBlob

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
    """The blob is held under its name, or was."""
    FAILED = 5
    """It ended without the blob; `cause` says why."""


class Ingest:
    """The work of one download.

    Attributes:
        signal: pulsed under a chunk's number when that has got more bytes, and for everybody when anything else has changed.
        partial: the bytes, as far as they have arrived.
        filling: who fetches them in this process.
        held: the blob, if it was found to be held.
        lost: whether the disk has failed to take the bytes: what can be read of them may be wrong.
        fetched: whether the blob was fetched here, or it was seen here that it could not be fetched.

    Args:
        reached: told of each state.
        is_read: whether clients of this process read it.
    """

    def __init__(
        self,
        digest: Digest,
        source: Source,
        services: DownloadServices,
        reached: Callable[[State], None],
        is_read: Callable[[], bool] = lambda: True,
    ) -> None:
        self.signal = Signal()
        self.partial: Partial | None = None
        self.coordinator: FetchCoordinator | None = None
        self.held: CachedBlob | None = None
        self.lost = False
        self.fetched = True
        self._digest = digest
        self._source = source
        self._services = services
        self._reached = reached
        self._is_read = is_read

    async def run(self) -> None:
        """Bring the blob into the store; raises MirrorError if that fails. `close` has to follow."""
        partial, coordinator = await self._open()
        while not (partial.try_acquire_driver() and partial.is_current()):
            if partial.is_current():
                await self._follow(partial)
            elif self._was_committed(partial):
                return
            else:
                partial, coordinator = await self._open()
        partial.want(False)
        await self._drive(partial, coordinator)

    async def close(self, *, keep: bool) -> None:
        """Let go of everything.

        Args:
            keep: leave `held` open for readers who have to finish, whatever becomes of the blob's name; the caller closes it.
        """
        if self.coordinator is not None:
            await self.coordinator.close()
        if self.partial is not None:
            if keep and self.held is None and self.partial.size is not None:
                # Without a descriptor left for that, who has not begun to read gets an error.
                with contextlib.suppress(StorageError):
                    self.held = CachedBlob(self.partial.reader(), self.partial.size)
            self.partial.abandon()
        if not keep and self.held is not None:
            self.held.close()

    async def _open(self) -> tuple[Partial, FetchCoordinator]:
        """Open what there is of the blob, in place of what was open before."""
        if self.coordinator is not None:
            await self.coordinator.close()
        if self.partial is not None:
            self.partial.close()
        services = self._services
        partial = self.partial = await opened_in_thread(
            services.threads.write,
            lambda: Partial(services.layout, services.files.quota, self._digest),
            Partial.abandon,
        )
        self.coordinator = FetchCoordinator(partial, self._source, services, self.signal, self._progressed)
        return partial, self.coordinator

    # ---- another process drives it

    async def _follow(self, partial: Partial) -> None:
        """Watch until the file has lost its name, or its driver lock could be had.

        Raises:
            StorageError: whoever drives it hangs.
        """
        policy, loop = self._services.policy, asyncio.get_running_loop()
        deadline, seen = loop.time() + policy.stall, (-1, -1, Fate.OPEN)
        while partial.is_current():
            partial.want(self._is_read())
            known = partial.refresh()
            now = (partial.received(), partial.map.hashed, partial.map.fate)
            if now != seen:
                # Bytes arrive or are hashed, or are right and on their way to the disk: it does not hang.
                verified = known and partial.map.fate is Fate.VERIFIED
                deadline, seen = loop.time() + (policy.flush if verified else policy.stall), now
                if known:
                    self._reached(State.VERIFIED if verified else State.FILLING)
            if loop.time() > deadline:
                # Nobody can take its lock from it: readers go on past the store.
                raise StorageError(f"another worker makes no progress with {self._digest}", "busy")
            await asyncio.sleep(_FOLLOW_INTERVAL)
            if partial.try_acquire_driver():
                return

    def _was_committed(self, partial: Partial) -> bool:
        """Whether the file that has lost its name has become the blob; else False if nothing of it was ever seen here.

        Raises:
            MirrorError: it was thrown away.
        """
        known = partial.refresh()
        fate = partial.map.fate
        if known and fate is Fate.VERIFIED:
            # Whether it is still held or gone again by now.
            return self._end_as_follower()
        size = self._services.files.size_if_same(self._digest, partial.descriptor)
        if size is not None:
            # The map was opened too late: it is not the one that belonged to these bytes.
            self.held = CachedBlob(partial.reader(), size)
            return self._end_as_follower()
        if fate is Fate.NO_ROOM:
            raise StorageError(f"another worker had no room for {self._digest}", "full")
        if fate is Fate.LOST:
            self.lost = True
            raise FlushFailed(f"another worker could not get {self._digest} onto the disk", "io")
        if partial.received() and fate is Fate.WRONG:
            # Readers may have had some of them.
            raise DigestMismatch(f"what had arrived of {self._digest} at another worker was wrong")
        if partial.received():
            raise StorageError(f"what had arrived of {self._digest} was cleared away", "busy")
        return False

    def _end_as_follower(self) -> bool:
        self.fetched = False
        self._reached(State.VERIFIED)
        self._reached(State.COMMITTED)
        return True

    # ---- this process drives it

    async def _drive(self, partial: Partial, coordinator: FetchCoordinator) -> None:
        threads = self._services.threads
        self.held = self._services.files.open(self._digest)
        if self.held is not None:
            await partial.in_thread(threads.write, partial.discard)
            self.fetched = False
            self._reached(State.COMMITTED)
            return
        await rehash(partial, threads.write)
        if await partial.in_thread(threads.write, partial.refresh):
            if partial.received():
                self._services.resumed("restart")
            self._reached(State.FILLING)
        await self._fill(partial, coordinator)
        partial.tell(Fate.VERIFIED)
        self._reached(State.VERIFIED)
        await self._commit(partial)
        self._reached(State.COMMITTED)

    async def _fill(self, partial: Partial, coordinator: FetchCoordinator) -> None:
        """Return when everything has arrived and has the digest."""
        verifier = asyncio.get_running_loop().create_task(self._verify(partial))
        try:
            await coordinator.fill()
            await verifier
        except MirrorError as error:
            fate = _fate(error, coordinator)
            if fate is not Fate.OPEN or not partial.received():
                await partial.in_thread(self._services.threads.write, partial.discard, fate)
            raise
        finally:
            verifier.cancel()
            await asyncio.gather(verifier, return_exceptions=True)

    async def _verify(self, partial: Partial) -> None:
        while partial.size is None:
            await self.signal.wait(1.0)

        async def arrived(position: int) -> int:
            while (end := partial.available(position)) <= position:
                await self.signal.wait(1.0, position // CHUNK)
            return end

        await verify(partial, arrived, self._services.threads.write)

    async def _commit(self, partial: Partial) -> None:
        threads, files = self._services.threads, self._services.files
        try:
            await partial.in_thread(threads.flush, _adopt, files, partial)
        except FlushFailed:
            self.lost = True
            await partial.in_thread(threads.write, partial.discard, Fate.LOST)
            raise

    def _progressed(self, chunk: int | None) -> None:
        if chunk is None:
            self._reached(State.FILLING)
        else:
            self.signal.pulse(chunk)


def _adopt(files: BlobFiles, partial: Partial) -> None:
    files.commit(partial.path, partial.descriptor, partial.digest)
    # Here, so that it goes although whoever waits is cancelled.
    partial.forget_map()


def _fate(error: MirrorError, coordinator: FetchCoordinator) -> Fate:
    """What becomes of bytes whose download failed: they stay for the next one, unless they would stand in its way."""
    if isinstance(error, StorageError) and error.reason != "busy":
        # Bytes that do not fit are in the way of everything else, and what the disk does not take may be wrong.
        return Fate.NO_ROOM if error.reason in ("full", "too_large") else Fate.LOST
    wrong = isinstance(error, DigestMismatch) or coordinator.is_contradicted
    return Fate.WRONG if wrong else Fate.OPEN
