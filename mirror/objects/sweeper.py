"""Keeps a bucket below its limit, and deletes from it what was purged.

An object goes in two steps. First it is promised to nobody any more. After a grace, which is longer than anybody relies on a
promise, it is deleted unless it was used meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass

import structlog

from mirror.aio import in_thread, together
from mirror.core.digest import Digest
from mirror.core.digest_filter import DigestFilter
from mirror.core.sweep_plan import SweepPlan, SweptObject
from mirror.errors import MirrorError
from mirror.objects.bucket import Bucket, ListedObject
from mirror.objects.facts import ObjectFacts
from mirror.objects.keys import BLOBS, MANIFESTS, blob_key, digest_of, manifest_key
from mirror.objects.owed import OwedUploads
from mirror.objects.tag_reach import TagReach
from mirror.storage.store import Store
from mirror.throttled_log import ThrottledLog

log = structlog.get_logger(__name__)

_TICK_S = 5.0
_LOOK_INTERVAL_S, _FULL_INTERVAL_S = 600.0, 60.0
# Objects go above the first share of the limit, down to the second.
_HIGH, _LOW = 0.95, 0.90
_MAX_PLANNED = 50_000
# Of one step, and how many steps one look at the tags is good for.
_MAX_PURGED, _MAX_BATCHES = 1000, 50
_DELETIONS_AT_ONCE = 8

_Page = Sequence[tuple[Digest, ListedObject]]


@dataclass(frozen=True)
class SweepLimits:
    """The limits of a bucket.

    Attributes:
        max_size: bytes of all objects; 0 for no limit.
        grace_s: between the two steps of a deletion.
        purge_grace_s: the same after a purge.
    """

    max_size: int
    grace_s: float
    purge_grace_s: float = 3600.0


class Sweeper:
    """Sweeps one bucket. `run` has to run in one process of each store.

    Args:
        owed: names what was purged from this store.

    Attributes:
        leads: whether this process keeps the limit of the bucket; of several stores one does.
        size: bytes of all blobs and manifests; None if they have not been counted.
        deleted: called with the number and the bytes of deleted objects.
    """

    def __init__(self, bucket: Bucket, store: Store, facts: ObjectFacts, owed: OwedUploads, limits: SweepLimits) -> None:
        self.leads: Callable[[], bool] = lambda: True
        self.deleted: Callable[[int, int], None] = lambda *_: None
        self.size: int | None = None
        self._bucket = bucket
        self._store = store
        self._facts = facts
        self._owed = owed
        self._limits = limits
        self._reach = TagReach(bucket, store)
        # What goes, with the time from which on a use saves it.
        self._withdrawn: dict[Digest, tuple[SweptObject, float]] = {}
        self._look_at = self._purges_at = self._total_at = 0.0
        self._log = ThrottledLog(log, burst=1, interval=_LOOK_INTERVAL_S)

    async def run(self) -> None:
        """Sweep until cancelled. A bucket that fails is looked at again later."""
        while True:
            try:
                await self.tick()
            except MirrorError as error:
                self._log.log("warning", "sweep_failed", cause=str(error), consequence="the bucket may exceed objects.max_size")
            except Exception as error:  # noqa: BLE001 - uploads and other work continue
                self._log.log("error", "sweep_failed", exc_info=error)
            await asyncio.sleep(_TICK_S)

    async def tick(self) -> None:
        """Do what is due. Raises MirrorError if the bucket or the facts cannot be read."""
        now = time.monotonic()
        if not self._bucket.is_up:
            return
        if now >= self._purges_at:
            self._purges_at = now + _FULL_INTERVAL_S
            await self._sweep_purged()
        if self.leads():
            await self._delete_withdrawn()
            if now >= self._look_at:
                # Also after a failure.
                self._look_at = now + _FULL_INTERVAL_S
                await self._look()
                if not self._is_full():
                    self._look_at = now + _LOOK_INTERVAL_S
            return
        self._withdrawn.clear()
        self._look_at = 0.0
        if now >= self._total_at:
            self._total_at = now + _FULL_INTERVAL_S
            self.size = await self._facts.total()

    def note_written(self, size: int) -> None:
        """Count an object that this process has written."""
        if self.size is not None:
            self.size += size

    # ---- the limit

    def _is_full(self) -> bool:
        return 0 < self._limits.max_size * _HIGH < (self.size or 0)

    async def _look(self) -> None:
        """Count the objects, and withdraw some if they are too many."""
        self.size = sum([sum(one.size for _, one in page) async for page in self._content()])
        await self._facts.share_total(self.size)
        going = sum(found.size for found, _ in self._withdrawn.values())
        if self._is_full():
            wanted = self.size - going - int(self._limits.max_size * _LOW)
            await self._withdraw(await self._planned(wanted))

    async def _planned(self, wanted: int) -> list[SweptObject]:
        """Select objects of `wanted` bytes."""
        plan = SweepPlan(wanted, _MAX_PLANNED, time.time())
        if wanted > 0:
            reach = await self._reach.find()
            async for page in self._content():
                for found in await self._described(page, reach):
                    plan.offer(found)
        return plan.selected()

    async def _described(self, page: _Page, reach: DigestFilter) -> list[SweptObject]:
        named = [(digest, one) for digest, one in page if digest not in self._withdrawn]
        digests = [digest for digest, _ in named]
        uses = await self._facts.uses(digests)
        here = await in_thread(None, lambda: [self._store.files.used(digest) or 0.0 for digest in digests])
        return [
            SweptObject(digest, one.key == manifest_key(digest), one.size, max(one.written, used, local), digest in reach)
            for (digest, one), used, local in zip(named, uses, here, strict=True)
        ]

    async def _withdraw(self, objects: Sequence[SweptObject]) -> None:
        if not objects:
            return
        log.info("objects_withdrawn", objects=len(objects), bytes=sum(found.size for found in objects), of=self.size)
        await self._facts.withdraw([found.digest for found in objects])
        since = time.time()
        self._withdrawn.update({found.digest: (found, since) for found in objects})

    async def _delete_withdrawn(self) -> None:
        due = time.time() - self._limits.grace_s
        going = [(found, since) for found, since in self._withdrawn.values() if since <= due]
        for found, _ in going:
            del self._withdrawn[found.digest]
        await self._delete([_Doomed(found.digest, since) for found, since in going])

    async def _content(self) -> AsyncGenerator[_Page, None]:
        # Manifests first: what arrives between the two has its blobs already. What somebody else has put here stays, and does not
        # count: ours would go in its place.
        for prefix in (MANIFESTS, BLOBS):
            async for page in self._bucket.pages(prefix):
                yield [(digest, one) for one in page if (digest := digest_of(one.key)) is not None]

    # ---- purges

    async def _sweep_purged(self) -> None:
        """Delete what was purged some time ago, unless a tag leads to it, or it was used since."""
        before, reach = time.time() - self._limits.purge_grace_s, None
        for _ in range(_MAX_BATCHES):
            rows = await in_thread(None, self._owed.purged, before, _MAX_PURGED)
            if not rows:
                return
            # A tag that appears later saves what it needs as a use.
            reach = await self._reach.find() if reach is None else reach
            await self._delete_purged(rows, reach)
            await in_thread(None, self._owed.delete_purged, [digest for digest, _ in rows])

    async def _delete_purged(self, rows: Sequence[tuple[Digest, float]], reach: DigestFilter) -> None:
        doomed: dict[Digest, float] = {}
        for digest, since in rows:
            parts = set() if digest in reach else await self._reach.parts(digest)
            doomed.update({part: max(since, doomed.get(part, 0.0)) for part in parts if part not in reach})
        await self._delete([_Doomed(digest, since) for digest, since in doomed.items()])

    # ---- the second step

    async def _delete(self, doomed: Sequence[_Doomed]) -> None:
        removed: list[int] = []
        try:
            for start in range(0, len(doomed), _DELETIONS_AT_ONCE):
                await together(self._delete_one(one, removed) for one in doomed[start : start + _DELETIONS_AT_ONCE])
        finally:
            if removed:
                self._count_deleted(removed, kept=len(doomed) - len(removed))

    def _count_deleted(self, removed: Sequence[int], *, kept: int) -> None:
        if self.size is not None:
            self.size = max(0, self.size - sum(removed))
        self.deleted(len(removed), sum(removed))
        log.info("objects_deleted", objects=len(removed), bytes=sum(removed), kept=kept)

    async def _delete_one(self, doomed: _Doomed, removed: list[int]) -> None:
        """Delete an object, and add its bytes to `removed`, unless it is not to be deleted, or is gone."""
        digest = doomed.digest
        if not await self._facts.condemn(digest, doomed.since):
            return
        try:
            # Its kind may not be known.
            sizes = [await self._bucket.size(key) for key in (manifest_key(digest), blob_key(digest))]
            for size, key in zip(sizes, (manifest_key(digest), blob_key(digest)), strict=True):
                if size is not None:
                    await self._bucket.delete(key)
        finally:
            await self._facts.release(digest, None)
        if sizes != [None, None]:
            removed.append(sum(size or 0 for size in sizes))
            await self._facts.forget(digest)


@dataclass(frozen=True, slots=True)
class _Doomed:
    """An object that goes unless it was used after `since`."""

    digest: Digest
    since: float
