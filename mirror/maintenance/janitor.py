"""The janitor: evicts, scrubs and removes leftovers, in one process of a store at a time, off the path of requests.

It has its own threads, so that a walk over files and the writes of a download never wait for each other. A walk over all blobs
has a process of its own (`maintenance.store_scan`).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import structlog

from mirror.aio import in_thread
from mirror.cache.tag_policy import TagPolicies
from mirror.cache.usage import Usage
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.errors import StorageError
from mirror.maintenance import store_scan
from mirror.maintenance.evictor import Evictor
from mirror.maintenance.interrupted_imports import InterruptedImports
from mirror.maintenance.leftovers import Leftovers
from mirror.maintenance.owners import assign_owners
from mirror.maintenance.scrub import Scrub
from mirror.metrics import Metrics
from mirror.storage.account import Account, on_disk
from mirror.storage.coordination import LeaderLock
from mirror.storage.errors import storage_errors
from mirror.storage.images import attached, reach
from mirror.storage.index import ReadCheck
from mirror.storage.staging import staged_files
from mirror.storage.store import Store
from mirror.throttled_log import ThrottledLog

log = structlog.get_logger(__name__)

_INTERVAL_S = 5.0
_USAGE_INTERVAL_S = 15.0
_COUNT_INTERVAL_S = 3600.0
# After a count that found an error, and that other processes disturbed.
_RECOUNT_PAUSE_S = 60.0
# The longest time that a request waits for room; then its blob bypasses the store. A stop waits no longer, either.
_ROOM_TIMEOUT_S = 5.0


class Janitor:
    """Cleans up one store.

    Attributes:
        policies: decide which tags are pinned. So are the images that the configuration keeps here.
        scrub: hashes held blobs, a little at a time.
        leftovers: deletes what crashes leave behind.
    """

    def __init__(self, store: Store, scrub: Scrub, usage: Usage, metrics: Metrics, policies: TagPolicies) -> None:
        self.policies = policies
        self._layout = store.layout
        self._files = store.files
        self._index = store.index
        self._jobs = store.jobs
        self.scrub = scrub
        self._usage = usage
        self.leftovers = Leftovers(store.layout, store.files, store.index)
        # Without its record a tag would follow like a new one.
        self.leftovers.keeps = lambda repository, tag: self.policies.hold_rule(repository, tag) is not None
        self._evictor = Evictor(store, self.leftovers, metrics, self.pinned, self._write_used)
        self._interrupted_imports = InterruptedImports(store)
        # One for each kind of work, so that none waits for another's long walk.
        self._threads = ThreadPoolExecutor(5, thread_name_prefix="janitor")
        self._stopping = threading.Event()
        self._making_room = asyncio.Lock()
        # Blobs that count for no registry at the last count, and after the last pass that has looked for theirs.
        self._unowned = self._unassignable = 0
        self._log = ThrottledLog(log)

    async def make_room(self, size: int, owner: str | None = None) -> None:
        """Try to make room for `size` bytes within a few seconds.

        Args:
            owner: the registry that they count for.

        Raises:
            StorageError: the file system failed.
        """
        await self._make_room(partial(self._evictor.make_room, size, owner))

    async def make_registry_room(self, size: int, registry: str) -> None:
        """Try to make room in a registry with a limit, for `size` bytes that are reserved in the store.

        Raises:
            StorageError: the file system failed.
        """
        await self._make_room(partial(self._evictor.make_registry_room, size, registry))

    async def _make_room(self, make: Callable[[float], None]) -> None:
        def work() -> None:
            with storage_errors("making room"):
                make(deadline)

        # The time in the queue counts, because a client waits meanwhile.
        deadline = time.monotonic() + _ROOM_TIMEOUT_S
        async with self._making_room:
            await in_thread(self._threads, work)

    async def run(self) -> None:
        """Work until cancelled. One of several processes cleans up; the others wait until it ends."""
        works = [asyncio.get_running_loop().create_task(work()) for work in (self._write_usage, self._when_elected)]
        try:
            await asyncio.gather(*works)
        finally:
            # The shutdown waits for running work, which may be long.
            self._stopping.set()
            self._evictor.stop()
            self.leftovers.stop()
            for work in works:
                work.cancel()
            await asyncio.gather(*works, return_exceptions=True)
            await in_thread(self._threads, self._write_used)
            await asyncio.to_thread(self._threads.shutdown)

    async def _when_elected(self) -> None:
        with contextlib.closing(LeaderLock(self._layout.janitor_lock)) as leader:
            await leader.elected()
            await asyncio.gather(self._clean_up(), self._scrub_on(), self._clear_imports())

    async def _write_usage(self) -> None:
        while True:
            await asyncio.sleep(_USAGE_INTERVAL_S)
            await self._guarded("usage", self._write_used)

    async def _clean_up(self) -> None:
        count_at = float("-inf")
        while True:
            due = time.monotonic() > count_at
            if due:
                count_at = time.monotonic() + _COUNT_INTERVAL_S
                if await self._guarded("count", self.count) is False:
                    count_at = time.monotonic() + _RECOUNT_PAUSE_S
            while await self._guarded("evict", self.evict):
                pass
            if due:
                await self._guarded("leftovers", self.leftovers.clear)
                await self._guarded("owners", self.assign_owners)
            await asyncio.sleep(_INTERVAL_S)

    async def _scrub_on(self) -> None:
        while True:
            step = asyncio.ensure_future(self._guarded("scrub", lambda: self.scrub.step(time.time())))
            try:
                await asyncio.shield(step)
            finally:
                # A large blob takes minutes, which a stop does not wait for.
                if not step.done():
                    self.scrub.stop()
                    await step
            await asyncio.sleep(_INTERVAL_S)

    async def _clear_imports(self) -> None:
        while True:
            await self._guarded("imports", self._interrupted_imports.clear)
            await asyncio.sleep(_INTERVAL_S)

    async def _guarded(self, what: str, work: Callable[[], object]) -> object:
        """Run work in a thread and log its failure, which ends neither this kind of work for good nor another."""
        try:
            return await in_thread(self._threads, work)
        except (OSError, StorageError) as error:
            # The disk failed or no descriptor is left: a traceback adds nothing.
            self._log.log("error", "janitor_failed", what, work=what, cause=str(error))
            return None
        except Exception:
            log.exception("janitor_failed", work=what)
            return None

    # ---- in the thread

    def _write_used(self) -> None:
        self._usage.write(self._files, self._index)

    def count(self) -> bool:
        """Count the files and correct the account; False if that has to be repeated soon."""
        began = time.monotonic()
        quota = self._files.quota
        mark = quota.mark()
        # Before the scan: what is committed after its shard was scanned would otherwise be in neither.
        partials, staged = list(self.leftovers.partials()), list(staged_files(self._layout))
        held = store_scan.take(self._layout, self._stopping.is_set, registry="*")
        if held is None:
            return False
        counted = Account(held.taken, held.blobs)
        counted = replace(counted, registries={name: Account(*row) for name, row in held.registries.items() if name})
        for one in partials:
            counted = counted.take(on_disk(one.size), one.owner)
        for file in staged:
            counted = counted.take(on_disk(file.size), file.owner)
        log.info("store_counted", blobs=held.blobs, bytes=counted.used, seconds=round(time.monotonic() - began, 3))
        # A blob that was committed meanwhile may be counted twice: for a while, too much is better than too little.
        twice = any(self._files.size(one.digest) is not None for one in partials)
        twice = twice or any(not os.path.exists(file.path) for file in staged)
        certain = quota.correct(mark, counted) and not twice
        self._unowned = held.registries.get("", (0, 0))[1]
        return certain

    def assign_owners(self) -> None:
        """Give the blobs of earlier versions to their registries, unless the last pass has found none for as many."""
        if self._unowned > self._unassignable and self._files.quota.keeps_owners:
            self._unassignable = assign_owners(self._layout, self._files, self._index, self.leftovers.pause)

    def evict(self) -> bool:
        """Evict for a while if the store is too large; returns whether there is more to do."""
        return self._evictor.evict()

    def pinned(self) -> frozenset[Digest]:
        """Return the blobs and manifests of pinned tags and kept images."""
        policies, kept = self.policies, self._jobs.kept_images()
        if not kept and not any(rule.pin for rules in policies.rules.values() for rule in rules):
            return frozenset()
        known = ReadCheck(self._index)
        pinned = [
            (repository, record.digest)
            for repository, tag, record in self._index.tags.matching()
            if policies.is_pinned(repository, tag) or f"{repository}:{tag}" in kept
        ]
        roots = [digest for repository, root in pinned for digest in (root, *attached(self._index, repository, root))]
        known.check()
        roots += filter(None, map(_digest, kept))
        reached = reach(self._files, roots)
        return reached.manifests | reached.blobs


def _digest(name: str) -> Digest | None:
    """Return the digest in an image's name, or None."""
    try:
        return Digest.parse(name.partition("@")[2])
    except InvalidInput:
        return None
