"""Carries out orders, by itself every interval and whenever somebody asks; in one process of a store, whatever their number."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from mirror.aio import together
from mirror.metrics import Metrics
from mirror.storage.index import Index
from mirror.storage.job_store import JobStore
from mirror.storage.layout import Layout
from mirror.storage.leader_lock import LeaderLock
from mirror.sync.image_syncer import ImageSyncer
from mirror.sync.job import Kind, Order
from mirror.sync.plan import CachedTag, Plan, Planner
from mirror.sync.run import Run, Summary, is_settled
from mirror.sync.schedule import Schedule, after, round_to_run

# How often it is looked whether there is something to do, and told how far it is. Seconds.
_LOOK = 0.25
_ELECT = 2.0
# An order that stands although it was carried out is not carried out again before this.
_STUCK_S = 60.0
# A scheduled run makes way for the next one, but not before this. An order may bring many images. Seconds.
_LONGEST_SCHEDULED = 3600.0
_LONGEST_ORDER = 86400.0


@dataclass(frozen=True)
class SyncServices:
    """What runs work with; another one when the configuration changes.

    Attributes:
        interval: seconds between scheduled runs, 0 for none but when other images are configured.
    """

    syncer: ImageSyncer
    planner: Planner
    interval: float


class SyncScheduler:
    """Keeps one store in sync.

    Args:
        means: called for those of the day.
    """

    def __init__(
        self, layout: Layout, index: Index, jobs: JobStore, metrics: Metrics, sync_services: Callable[[], SyncServices]
    ) -> None:
        self._layout = layout
        self._index = index
        self._jobs = jobs
        self._metrics = metrics
        self._sync_services = sync_services
        self._runs: dict[Kind, Run] = {}
        # Nobody else notes anything meanwhile, and the ledger may be one that cannot be written.
        self._noted: Schedule | None = None

    def kept(self) -> frozenset[str]:
        """Names of the images that the configuration keeps here, as they were found last. Costs one read."""
        return frozenset(name for names in self._kept().values() for name in names)

    def _kept(self) -> dict[str, list[str]]:
        rows = self._jobs.state("kept", dict)
        return {entry: [str(name) for name in names] for entry, names in rows.items() if isinstance(names, list)}

    async def run(self) -> None:
        """Work until cancelled. What is under way then is taken up again after the next start."""
        with contextlib.closing(LeaderLock(self._layout.sync_lock)) as election:
            while not election.won():  # noqa: ASYNC110 - the kernel has no event for a lock
                await asyncio.sleep(_ELECT)
            self._metrics.sync_last_success.set(self._jobs.state("succeeded", float))
            # A long order of one kind keeps none of another kind waiting: a push that is told of is looked at meanwhile.
            await together([self._lane("schedule"), self._lane("sync"), self._lane("warm"), self._tell()])

    async def _lane(self, kind: Kind) -> None:
        look = self._scheduled if kind == "schedule" else lambda: self._waiting(kind)
        last: Order | None = None
        while True:
            # A thousand orders take some milliseconds to be read.
            order = await asyncio.to_thread(look)
            if order is None:
                await asyncio.sleep(_LOOK)
                continue
            if order == last and kind != "schedule":
                # It could not be removed: the ledger cannot be written.
                await asyncio.sleep(_STUCK_S)
            last = order
            await self._carry_out(order)

    async def _tell(self) -> None:
        """Write down how far the runs are, for the other processes."""
        told: list[dict[str, Any]] | None = None
        while True:
            running = [run.snapshot() for run in self._runs.values()]
            if running != told:
                told = running
                await asyncio.to_thread(self._jobs.put_state, "running", running)
            await asyncio.sleep(_LOOK)

    # ---- what is next

    def _waiting(self, kind: Kind) -> Order | None:
        """The order of a kind that has waited longest and may begin."""
        orders = (Order.read(name, row) for name, row in self._jobs.orders())
        due = [order for order in orders if order is not None and order.kind == kind and order.is_due(time.time())]
        for order in sorted(due, key=lambda order: order.asked):
            row = self._jobs.order(order.name)
            if row is not None:
                return Order.read(order.name, row)
            # A part of it has been lost, or somebody has just removed it: it must not stand in the way of others.
            self._jobs.drop_order(order.name)
        return None

    def _scheduled(self) -> Order | None:
        """The resync, if it is time for it; one that did not come to its end is gone on with."""
        sync_services, now = self._sync_services(), time.time()
        images = sync_services.planner.wants_images or bool(self._jobs.state("kept", dict))
        began = round_to_run(self._schedule(), sync_services.planner.fingerprint, sync_services.interval, now, images=images)
        return None if began is None else Order("schedule", "schedule", (), (), began, now, "schedule")

    def _schedule(self) -> Schedule | None:
        return self._noted or Schedule.read(self._jobs.state("schedule", dict))

    # ---- carrying out

    async def _carry_out(self, order: Order) -> None:
        sync_services, began = self._sync_services(), time.time()
        run = Run(order, lambda: self._sync_services().syncer, self._jobs, self._metrics)
        self._runs[order.kind] = run
        # Until it is planned: each image is then brought with what is current by then.
        planning = contextlib.ExitStack()
        planning.enter_context(sync_services.syncer.held())
        try:
            if order.kind == "schedule":
                await self._note_schedule(Schedule(order.asked, began, began, True, sync_services.planner.fingerprint))
            carried_out = run.carry_out(self._planned(order, sync_services, planning), self._bound(order, sync_services))
            summary = await (self._unless_others(carried_out, sync_services) if order.kind == "schedule" else carried_out)
            if summary is None:
                return
            if order.kind == "schedule":
                unfinished = summary.result in ("limited", "timeout")
                following = after(began, sync_services.interval, random.random())  # noqa: S311 - no secret
                await self._note_schedule(Schedule(order.asked, began, following, unfinished, sync_services.planner.fingerprint))
            await asyncio.to_thread(self._note_end, order, summary)
        finally:
            planning.close()
            del self._runs[order.kind]

    async def _unless_others(self, work: Coroutine[Any, Any, Summary], sync_services: SyncServices) -> Summary | None:
        """What comes of a scheduled run, or None if other images are configured meanwhile: then its round begins anew with them.

        What has been begun to be downloaded goes on.
        """
        running = asyncio.get_running_loop().create_task(work)
        try:
            while not running.done():
                await asyncio.wait([running], timeout=_LOOK)
                if not running.done() and self._sync_services().planner.fingerprint != sync_services.planner.fingerprint:
                    return None
            return running.result()
        finally:
            running.cancel()
            await asyncio.wait([running])

    def _note_end(self, order: Order, summary: Summary) -> None:
        if order.kind == "schedule" and summary.result == "completed":
            self._metrics.sync_last_success.set(summary.ended or 0.0)
            self._jobs.put_state("succeeded", summary.ended)
        self._jobs.put_state(f"last {order.kind}", summary.row())
        self._jobs.put_done(order.name, summary.row())
        self._jobs.remove_order(order.name, order.row())

    async def _planned(self, order: Order, sync_services: SyncServices, planning: contextlib.ExitStack) -> Plan:
        held = await asyncio.to_thread(self._held)
        kept = self._kept()
        results = await asyncio.to_thread(lambda: dict(self._jobs.results()))
        with planning:
            plan = await sync_services.planner.plan(
                order, held, kept, time.time(), lambda target: is_settled(target, results.get(str(target)), order.asked)
            )
        # Before anything is fetched: what is to stay must not be evicted by what comes after it.
        now_kept = plan.kept if order.kind == "schedule" else {**kept, **plan.kept}
        if now_kept != kept:
            await asyncio.to_thread(self._jobs.put_state, "kept", now_kept)
        return plan

    def _held(self) -> list[CachedTag]:
        return [
            CachedTag(repository, tag, record, self._index.tags.pulls(repository, tag))
            for repository, tag, record in self._index.tags.matching()
        ]

    async def _note_schedule(self, schedule: Schedule) -> None:
        self._noted = schedule
        await asyncio.to_thread(self._jobs.put_state, "schedule", schedule.row())

    @staticmethod
    def _bound(order: Order, sync_services: SyncServices) -> float:
        return max(_LONGEST_SCHEDULED, sync_services.interval) if order.kind == "schedule" else _LONGEST_ORDER
