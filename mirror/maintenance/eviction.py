"""Evicts blobs in the order of `core.eviction_order`. Blocks for long; belongs in a thread of its own."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from mirror.core.digest import Digest
from mirror.core.eviction import Evictable, Partials, Plan, Shortage, plan
from mirror.maintenance import store_scan
from mirror.storage.account import Account, on_disk
from mirror.storage.blobs import BlobFiles, CachedFile
from mirror.storage.coordination import FileLock, wait_in_thread
from mirror.storage.generation import Generation
from mirror.storage.layout import Layout

# Of one scan of the store, some 50 bytes each; fewer would cost more scans.
_MAX_CANDIDATES = 100_000
# How long the result of a scan is used; the time of each file is read again before it is removed.
_SCAN_TTL_S = 300.0


@dataclass(frozen=True, slots=True)
class Evicted:
    """The result of an eviction.

    Attributes:
        size: bytes.
        pinned: how many of the blobs were pinned.
    """

    blobs: int
    size: int
    pinned: int


class _Found:
    """The result of the last scan, and its bounds after changes since.

    Args:
        mark: the account before the scan.
    """

    def __init__(self, found: store_scan.StoreScan, mark: Account) -> None:
        self._evictable = Evictable(found.taken - found.pinned, found.pinned)
        self._mark = mark

    def minimum(self, now: Account, partials: Partials) -> Evictable:
        """Return what can be evicted if all that was released since the scan was part of its result."""
        released, found = now.released - self._mark.released, self._evictable
        return Evictable(
            partials.idle + max(0, found.unpinned - released), max(0, found.pinned - max(0, released - found.unpinned))
        )

    def maximum(self, now: Account, partials: Partials) -> Evictable:
        """Return what can be evicted if nothing that was stored since the scan is pinned."""
        return Evictable(max(0, now.used - partials.busy - self._evictable.pinned), self._evictable.pinned)


class Eviction:
    """Makes room by removing blobs, pinned ones last.

    Args:
        registry: remove only blobs that count for this registry; None for all.
        clock: seconds, for the age of a scan.
    """

    def __init__(
        self,
        layout: Layout,
        files: BlobFiles,
        generation: Generation,
        registry: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._layout = layout
        self._files = files
        self._generation = generation
        self._clock = clock
        self._next: Iterator[CachedFile] = iter(())
        self._found: _Found | None = None
        self._found_at = float("-inf")
        self._seen = self._skipped = 0
        self._stopping = threading.Event()

    def plan(
        self,
        shortage: Shortage,
        partials: Partials,
        pinned: Callable[[], AbstractSet[Digest]],
        deadline: float,
        enough: Callable[[], bool] = lambda: False,
        *,
        both: bool = False,
    ) -> Plan:
        """Decide what to evict (`core.eviction.plan`); scans the store only if the last scan leaves that open.

        Args:
            pinned: returns the pinned blobs; called only if a scan is needed.
            enough: whether another process that evicts has made enough room meanwhile.
        """
        if max(shortage.size.wanted, shortage.free.wanted) <= partials.idle:
            return plan(shortage, Evictable(partials.idle), both=both)
        now = self._mark()
        if self._found is not None and self._clock() - self._found_at < _SCAN_TTL_S:
            least = plan(shortage, self._found.minimum(now, partials), both=both)
            if least == plan(shortage, self._found.maximum(now, partials), both=both):
                return least
        with self._lock(deadline, enough) as locked:
            if not locked or not self._scan(pinned(), deadline, last_resort=False) or self._found is None:
                return Plan()
        return plan(shortage, self._found.minimum(self._mark(), partials), both=both)

    def evict(
        self,
        wanted: Plan,
        pinned: AbstractSet[Digest],
        deadline: float,
        enough: Callable[[], bool] = lambda: False,
        on_removed: Callable[[Digest], None] = lambda _: None,
    ) -> Evicted:
        """Remove blobs until the plan is fulfilled, no candidate is left, or `deadline` (monotonic) has passed.

        Args:
            enough: whether another process that evicts has made enough room meanwhile.
            on_removed: called with each blob, after it was removed.
        """
        blobs = size = taken = pins = 0
        with self._lock(deadline, enough) as locked:
            for last_resort, target in ((False, wanted.size), (True, wanted.with_pins)) if locked else ():
                if taken >= target:
                    break
                for file in self._candidates(pinned, deadline, last_resort=last_resort):
                    removed = self._files.delete(file.digest)
                    on_removed(file.digest)
                    blobs, size, taken = blobs + 1, size + removed, taken + on_disk(removed)
                    pins += last_resort
                    if taken >= target:
                        break
        if blobs:
            self._generation.change()
        return Evicted(blobs, size, pins)

    def stop(self) -> None:
        """End running work, and start no more."""
        self._stopping.set()

    def _mark(self) -> Account:
        return self._files.quota.mark().of(self._registry)

    def _over(self, deadline: float) -> bool:
        return self._stopping.is_set() or time.monotonic() >= deadline

    def _candidates(self, pinned: AbstractSet[Digest], deadline: float, *, last_resort: bool) -> Iterator[CachedFile]:
        """Yield blobs to remove, in order, as long as there are any and time is left."""
        if self._clock() - self._found_at < _SCAN_TTL_S:
            yield from self._unchanged(pinned, deadline, last_resort=last_resort)
        again = True
        while again and not self._over(deadline):
            if not self._scan(pinned, deadline, last_resort=last_resort):
                return
            yield from self._unchanged(pinned, deadline, last_resort=last_resort)
            # More are left if not all were candidates, or if some have been used since.
            again = self._seen >= _MAX_CANDIDATES or self._skipped > 0

    def _scan(self, pinned: AbstractSet[Digest], deadline: float, *, last_resort: bool) -> bool:
        """Scan the store; False if that failed or time was over first."""
        mark = self._mark()
        found = store_scan.take(
            self._layout,
            lambda: self._over(deadline),
            _MAX_CANDIDATES,
            pinned,
            only_pinned=last_resort,
            registry=self._registry or "",
        )
        if found is None:
            return False
        self._next, self._seen, self._skipped = found.candidates(), 0, 0
        self._found, self._found_at = _Found(found, mark), self._clock()
        return True

    def _unchanged(self, pinned: AbstractSet[Digest], deadline: float, *, last_resort: bool) -> Iterator[CachedFile]:
        """Yield the candidates of the last scan that have not been used since."""
        while not self._over(deadline) and (file := next(self._next, None)) is not None:
            self._seen += 1
            if (file.digest in pinned) == last_resort and self._files.used(file.digest) == file.used:
                yield file
            else:
                self._skipped += 1

    @contextlib.contextmanager
    def _lock(self, deadline: float, enough: Callable[[], bool]) -> Iterator[bool]:
        with contextlib.closing(FileLock(self._layout.eviction_lock)) as lock:
            timeout = deadline - time.monotonic()
            yield wait_in_thread(lock.try_acquire, timeout, lambda: self._stopping.is_set() or enough())
