"""The ingest of one blob: a task of the service that no request owns. See the package for the theory."""

from __future__ import annotations

import asyncio
import weakref
from io import FileIO

import structlog

from mirror import demand
from mirror.aio import Signal, opened_in_thread
from mirror.core import trailing
from mirror.core.digest import Digest
from mirror.core.trailing import Ranges
from mirror.core.urgency import Urgency
from mirror.download.driver import Driver
from mirror.download.fetcher import Fetcher
from mirror.download.follower import Follower
from mirror.download.partial import Partial
from mirror.download.services import DownloadServices
from mirror.download.shares import Readers, Share
from mirror.download.source import Source
from mirror.download.states import Committed, Connecting, Failed, Receiving, State, Verified, unverified_end
from mirror.errors import DigestMismatch, DownloadAbandoned, FlushFailed, MirrorError, UpstreamTimeout

log = structlog.get_logger(__name__)

# How often a reader far ahead asks again, if another writer was about to fetch its bytes.
_ASK_AGAIN_S = 0.25
# A lazy ingest without readers ends after this time; a new one would hash its beginning again.
_IDLE_S = 30.0
_CONNECTING = Connecting()


class Ingest:
    """One blob on its way into the store, and its readers.

    Attributes:
        share: its place in the counts.
        successor: a second ingest from scratch, if this one met a wrong digest.
        task: runs it.
        is_stopped: it is being ended, so no reader may join it.
        limits: the limits that it keeps.
        threads: for reading the file.
    """

    def __init__(self, digest: Digest, source: Source, services: DownloadServices, share: Share) -> None:
        self.digest = digest
        self.source = source
        self.share = share
        self.successor: Ingest | None = None
        self.task: asyncio.Task[Committed | Failed] | None = None
        self.is_stopped = False
        self.limits, self.threads = services.limits, services.threads.serve
        self._readers = Readers()
        self._services = services
        self._partial: Partial | None = None
        self._fetcher: Fetcher | None = None
        self._is_lazy = source.lazy_size is not None
        self._idle: asyncio.TimerHandle | None = None
        self._end: Committed | Failed | None = None
        self._changed = Signal()

    def __repr__(self) -> str:
        return f"<Ingest {str(self.digest)[:19]} {self.state.name} {self.received}/{self.size}>"

    @property
    def state(self) -> State:
        """The last state if it has ended, else the state of the partial file."""
        if self._end is not None:
            return self._end
        if self._partial is None or (size := self._partial.map.size) is None:
            return _CONNECTING
        return Verified(size) if self._partial.is_verified else Receiving(size)

    # ---- for readers

    @property
    def urgency(self) -> Urgency:
        """The urgency of its bytes now, for the readers of all processes."""
        own, partial = self._readers.urgency, self._partial
        if own is not Urgency.CLIENT and partial is not None and partial.has_readers_elsewhere():
            return Urgency.CLIENT
        return own

    @property
    def readers(self) -> int:
        """The number of its readers."""
        return len(self._readers)

    @property
    def addresses(self) -> list[str]:
        """The client addresses that read it in this process, those with most readers first."""
        return [address for address, _ in self._readers.addresses.copy().most_common()]

    @property
    def is_unread(self) -> bool:
        """Whether no reader needs more bytes of it than have arrived."""
        return self._is_lazy and not self._readers

    @property
    def size(self) -> int | None:
        """Bytes of the blob, once known."""
        if isinstance(self._end, Committed):
            return self._end.size
        return None if self._partial is None else self._partial.map.size

    @property
    def received(self) -> int:
        """Bytes that have arrived, as far as this process knows."""
        return self._partial.map.received() if self._partial else 0

    def join(self, urgency: Urgency, address: str | None) -> None:
        """Add a reader: until `leave` the bytes can be read, even if the blob is committed and purged meanwhile."""
        self._readers.join(urgency, address)
        if urgency is Urgency.CLIENT:
            self.share.resume()

    def leave(self, urgency: Urgency, address: str | None) -> None:
        """Remove a reader; the ingest continues, unless too many already continue without a client."""
        self._readers.leave(urgency, address)
        if self._end is not None:
            self._close_unread()
        elif urgency is Urgency.CLIENT and self._is_left() and not self.share.abandon() and not self._readers:
            self.stop()
        elif self.is_unread:
            if self._idle is not None:
                self._idle.cancel()
            self._idle = asyncio.get_running_loop().call_later(_IDLE_S, self._stop_unread)

    def _stop_unread(self) -> None:
        if self.is_unread and not (self._partial is not None and self._partial.map.is_complete()):
            self.stop()

    def stop(self) -> None:
        """End it; what has arrived stays on disk for the next pull."""
        assert self.task is not None
        self.is_stopped = True
        self.task.cancel()

    def _is_left(self) -> bool:
        """Whether no client reads what is still being fetched."""
        return not self._readers.clients and isinstance(self.state, Connecting | Receiving)

    async def sized(self, deadline: float) -> int:
        """Wait until the size of the blob is known, but not beyond `deadline` of the event loop's time.

        Raises:
            MirrorError: the ingest failed first, or the deadline has come.
        """
        while (size := self.size) is None:
            await self._change_until(deadline, None)
        return size

    async def ready(self, position: int, until: int, deadline: float, *, whole: bool) -> None:
        """Wait until the byte at `position` can be read, or until an empty blob is verified; raises like `sized`.

        Args:
            until: how far the reader reads, as in `readable`.
        """
        while self._readable_to(position, whole=whole) <= position and not self._is_empty_rest(position):
            self._fetch_for_reader(position, until, whole=whole)
            await self._change_until(deadline, position)

    async def readable(self, position: int, until: int, *, whole: bool) -> int:
        """Wait until bytes after `position` can be read, and return their end.

        Args:
            until: how far the reader is sure to read; what is behind it is not fetched for it alone.
            whole: the reader takes the blob from its first byte to its last, and trusts it then: its end waits for the digest.

        Raises:
            MirrorError: the ingest failed before they arrived.
        """
        while (end := self._readable_to(position, whole=whole)) <= position:
            self._fetch_for_reader(position, until, whole=whole)
            await self._change(_ASK_AGAIN_S, position)
        return end

    def arrived(self, position: int) -> tuple[int, int] | None:
        """The first bytes that have arrived, verified or not, from a position on: their start and end; None if there are none."""
        if self._partial is None or self.size is None:
            return None
        end = self._partial.map.available(position)
        if end <= position:
            hole = self._partial.map.hole(position)
            position = position if hole is None else hole[1]
            end = self._partial.map.available(position) if position < self.size else position
        return (position, end) if end > position else None

    def ranges(self) -> Ranges:
        """The first ranges that have arrived, verified or not."""
        found = self._partial
        return [] if found is None or found.map.size is None else trailing.arrived(found.map.hole, found.map.size)

    async def committed(self) -> None:
        """Wait until the blob is held under its name; raises MirrorError if that fails."""
        while not isinstance(self._end, Committed):
            self._require_whole()
            await self._change(1.0, None)

    def open_file(self) -> FileIO:
        """A descriptor to read what `readable` has returned. The size must be known."""
        if self._partial is None or not self._partial.is_readable:
            raise self._end.cause if isinstance(self._end, Failed) else DownloadAbandoned(f"nothing of {self.digest} is left")
        return self._partial.reader()

    def _fetch_for_reader(self, position: int, until: int, *, whole: bool) -> None:
        if whole:
            self._require_whole()
        if self._fetcher is not None and isinstance(self.state, Receiving):
            self._fetcher.fetch_ahead(position, until if self._is_lazy else None)

    def _require_whole(self) -> None:
        """Have everything fetched from now on, whichever readers leave."""
        if self._is_lazy:
            self._is_lazy = False
            if self._fetcher is not None:
                self._fetcher.is_lazy = False
            if self._partial is not None:
                self._partial.announce()

    async def _change_until(self, deadline: float, position: int | None) -> None:
        left = deadline - asyncio.get_running_loop().time()
        if left <= 0:
            raise UpstreamTimeout(f"no byte of {self.digest} within {self.limits.first_byte_s:g} s")
        await self._change(min(left, _ASK_AGAIN_S), position)

    async def _change(self, timeout_s: float, position: int | None) -> None:
        """Wait for bytes in the chunk of a position, or for another state."""
        if isinstance(self._end, Failed):
            raise self._end.cause
        if self._partial is None or self._end is not None:
            await self._changed.wait(timeout_s)
        else:
            await self._partial.changed(timeout_s, position)

    def _is_empty_rest(self, position: int) -> bool:
        """Whether there is no byte at `position` to wait for: the blob is empty, and its digest has matched."""
        partial = self._partial
        return position == self.size and (isinstance(self._end, Committed) or (partial is not None and partial.is_verified))

    def _readable_to(self, position: int, *, whole: bool) -> int:
        """The end of what can be read from `position` on."""
        state = self.state
        limit = state.limit(whole=whole)
        if self._partial is None or isinstance(state, Committed) or limit <= position:
            return limit
        return min(self._partial.map.available(position), limit)

    # ---- the task

    async def run(self) -> Committed | Failed:
        """Bring the blob into the store; `end` has to follow with the result. Raises nothing but CancelledError."""
        # Timers keep their context for a while after they were cancelled; they must not keep the source and its configuration.
        running = weakref.ref(self)
        demand.urgency.set(lambda: Urgency.SYNC if (found := running()) is None else found.urgency)
        with self.source.keep_open():
            try:
                return await self._complete()
            except MirrorError as error:
                return self.failed(error)
            except Exception as error:
                log.exception("download_bug", digest=str(self.digest))
                return self.failed(DownloadAbandoned(f"internal error: {error}"))
            finally:
                if self._fetcher is not None:
                    await self._fetcher.close()

    async def _complete(self) -> Committed:
        while True:
            partial, fetcher = await self._open()
            if not (partial.try_acquire_driver() and partial.is_current()):
                committed = await Follower(partial, fetcher, self._services, self._readers).run()
                if committed is not None:
                    return committed
                if not partial.is_current():
                    continue
            return await Driver(partial, fetcher, self._services).run()

    async def _open(self) -> tuple[Partial, Fetcher]:
        """Open the partial file, in place of one that was discarded."""
        if self._fetcher is not None:
            await self._fetcher.close()
        services, discarded = self._services, self._partial
        partial = await opened_in_thread(
            services.threads.write, lambda: Partial(services.layout, services.files.quota, self.digest), Partial.abandon
        )
        self._partial, self._fetcher = partial, Fetcher(partial, self.source, services)
        self._fetcher.is_lazy = self._is_lazy
        self._changed.pulse()
        if discarded is not None:
            discarded.announce()
            discarded.close()
        return self._partial, self._fetcher

    def failed(self, cause: MirrorError) -> Failed:
        """The state after a failure: what has arrived may be read, unless it is or may be wrong."""
        partial = self._partial
        if partial is None or partial.map.size is None or isinstance(cause, DigestMismatch | FlushFailed):
            return Failed(cause, 0)
        return Failed(cause, partial.map.size if partial.is_verified else unverified_end(partial.map.size))

    def end(self, end: Committed | Failed) -> None:
        """Enter the last state. Readers that have not finished keep the bytes open."""
        self._end = end
        if self._idle is not None:
            self._idle.cancel()
        if self._partial is not None:
            self._partial.abandon(keep_readable=True)
            self._partial.announce()
        self._changed.pulse()
        self._close_unread()

    def _close_unread(self) -> None:
        if self._partial is not None and not self._readers:
            self._partial.close()
