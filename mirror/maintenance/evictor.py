"""Keeps the store, and each registry with a limit of its own, within their bounds. Blocks; belongs in a thread.

A registry that exceeds its limit evicts its own blobs. The bounds of the whole store evict whatever was used least recently.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import structlog

from mirror.core.digest import Digest
from mirror.core.eviction import Reason, Shortage
from mirror.errors import StorageError
from mirror.maintenance.eviction import Eviction
from mirror.maintenance.leftovers import Leftovers
from mirror.metrics import Metrics
from mirror.storage.history import MAX_ROWS
from mirror.storage.index import Index
from mirror.storage.space_quota import Fit
from mirror.storage.store import Store

log = structlog.get_logger(__name__)

# Eviction starts above the high-water mark and ends at the low-water mark: shares of the limit.
_HIGH, _LOW = 0.95, 0.90
# The longest eviction before pins are looked up again; a scan of a slow disk has to fit in.
_MAX_EVICTION_S = 600.0


class Evictor:
    """Decides what to evict when, and does it.

    Args:
        pinned: returns the blobs that are evicted last.
        write_usage: writes the times of use that are still in memory.
    """

    def __init__(
        self,
        store: Store,
        leftovers: Leftovers,
        metrics: Metrics,
        pinned: Callable[[], frozenset[Digest]],
        write_usage: Callable[[], None],
    ) -> None:
        self._store = store
        self._quota = store.quota
        self._leftovers = leftovers
        self._metrics = metrics
        self._pinned = pinned
        self._write_usage = write_usage
        # By registry; None for the whole store.
        self._evictions: dict[str | None, Eviction] = {}
        self._evicting: set[str | None] = set()
        self._unreachable: frozenset[Reason] = frozenset()
        self._stopping = threading.Event()

    def stop(self) -> None:
        """End running work soon, and start no more."""
        self._stopping.set()
        for eviction in list(self._evictions.values()):
            eviction.stop()

    def evict(self) -> bool:
        """Evict for a while if the store or a registry is too large; returns whether there is more to do."""
        limited = [registry for registry in self._quota.limits if self._quota.limit_of(registry)]
        # The registries first: that may be enough for the store.
        left = [self._evict(registry) for registry in (*limited, None)]
        return any(left)

    def _evict(self, registry: str | None) -> bool:
        quota, evicting = self._quota, registry in self._evicting
        shortage = quota.shortage(_LOW, registry) if evicting or quota.shortage(_HIGH, registry) else Shortage()
        removed, unreachable = 0, frozenset[Reason]()
        if shortage:
            self._write_usage()
            removed, unreachable = self._remove(registry, shortage, time.monotonic() + _MAX_EVICTION_S)
        if registry is None:
            self._log_bounds(unreachable)
        more = bool(removed) and not self._stopping.is_set()
        (self._evicting.add if more else self._evicting.discard)(registry)
        return more

    def make_room(self, size: int, owner: str | None, deadline: float) -> None:
        """Make room for `size` bytes that count for a registry, until `deadline` (monotonic): in the registry, then in all."""
        if self._quota.limit_of(owner):
            self._make_room(size, owner, owner, deadline)
        self._make_room(size, owner, None, deadline)

    def make_registry_room(self, size: int, registry: str, deadline: float) -> None:
        """Make room in a registry with a limit only, for `size` bytes that are reserved in the store."""
        self._make_room(size, registry, registry, deadline)

    def _make_room(self, size: int, owner: str | None, registry: str | None, deadline: float) -> None:
        quota = self._quota

        def enough() -> bool:
            return not quota.shortage_for(size, registry) if registry else quota.fits(size, owner) is not Fit.NO_SPACE

        if time.monotonic() >= deadline or enough():
            return
        # A blob that was used a moment ago must not be evicted because its use is not written yet.
        self._write_usage()
        while not enough() and time.monotonic() < deadline:
            removed, _ = self._remove(registry, quota.shortage_for(size, registry), deadline, enough, both=True)
            if not removed:
                return

    def _log_bounds(self, unreachable: frozenset[Reason]) -> None:
        """Log when a bound has become unreachable, or reachable again."""
        quota = self._quota
        self._metrics.storage_min_free_ok.set("min_free" not in unreachable)
        bounds = {"free": quota.free(), "min_free": quota.min_free, "max_size": quota.max_size}
        for bound in unreachable - self._unreachable:
            hint = "evicting would not help, so nothing goes; new blobs go past the store"
            log.warning("bound_unreachable", bound=bound, **bounds, hint=hint)
        for bound in self._unreachable - unreachable:
            log.info("bound_reachable", bound=bound, **bounds)
        self._unreachable = unreachable

    def _remove(
        self,
        registry: str | None,
        shortage: Shortage,
        deadline: float,
        enough: Callable[[], bool] = lambda: False,
        *,
        both: bool = False,
    ) -> tuple[int, frozenset[Reason]]:
        """Make room; returns the removed bytes, and the unreachable bounds."""
        try:
            return self._remove_unpinned(registry, shortage, deadline, enough, both=both)
        except StorageError as error:
            log.error("eviction_postponed", cause=str(error), consequence="new blobs go past the store if they do not fit")
            return 0, frozenset()

    def _remove_unpinned(
        self, registry: str | None, shortage: Shortage, deadline: float, enough: Callable[[], bool], *, both: bool
    ) -> tuple[int, frozenset[Reason]]:
        """Make room like `_remove`; raises StorageError if the pins are unknown."""
        began, eviction = time.monotonic(), self._eviction(registry)
        pinned = functools.cache(self._pinned)
        plan = eviction.plan(shortage, self._leftovers.reserved(registry), pinned, deadline, enough, both=both)
        removed = self._leftovers.clear_idle_partials(plan.size, registry) if plan.size else 0
        if removed < plan.size:
            rest = replace(plan, size=plan.size - removed, with_pins=max(0, plan.with_pins - removed))
            manifests = _Manifests(self._store.index)
            evicted = eviction.evict(rest, pinned(), deadline, enough, manifests.add)
            removed += evicted.size
            reason = plan.reason if registry is None else "registry_max_size"
            self._metrics.evicted_blobs.labels(reason).inc(evicted.blobs)
            self._metrics.evicted_bytes.labels(reason).inc(evicted.size)
            seconds = round(time.monotonic() - began, 3)
            if evicted.blobs:
                manifests.record(f"registries.{registry}.max_size" if registry else plan.reason)
                log.info("evicted", blobs=evicted.blobs, bytes=evicted.size, reason=reason, registry=registry, seconds=seconds)
            if evicted.pinned:
                key = "storage.max_size" if registry is None else f"registries.{registry}.max_size"
                log.warning("pinned_evicted", blobs=evicted.pinned, hint=f"raise {key} or pin less")
        return removed, plan.unreachable

    def _eviction(self, registry: str | None) -> Eviction:
        found = self._evictions.get(registry)
        if found is None:
            store = self._store
            found = self._evictions[registry] = Eviction(store.layout, store.files, store.generation, registry)
            if self._stopping.is_set():
                found.stop()
        return found


class _Manifests:
    """The manifests among the evicted blobs, which may be very many."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._found: list[Digest] = []

    def add(self, digest: Digest) -> None:
        """Note an evicted blob. Of a digest that is no manifest nobody is a holder."""
        if len(self._found) < MAX_ROWS and self._index.manifests.holders(digest):
            self._found.append(digest)

    def record(self, bound: str) -> None:
        """Record them, so that the next miss of their images can be explained."""
        if self._found:
            self._index.history.note_evictions(self._found, time.time(), bound)
