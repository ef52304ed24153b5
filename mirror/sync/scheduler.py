"""Carries sync jobs out: the scheduled one at its interval, the others when they are due; in one process of a store."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Collection, Coroutine
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import structlog

from mirror.aio import together
from mirror.metrics import Metrics
from mirror.storage.coordination import LeaderLock
from mirror.storage.store import Store
from mirror.sync.image_syncer import ImageSyncer, Target
from mirror.sync.job import Kind, SyncJob
from mirror.sync.plan import Plan, Planner
from mirror.sync.run import Run, Summary, is_settled
from mirror.sync.schedule import Schedule, after, round_to_run

if TYPE_CHECKING:
    from mirror.cluster.rounds import SharedRounds
    from mirror.sync.cluster_orders import ClusterOrders

log = structlog.get_logger(__name__)

# Each has a lane: a pushed image is checked while a long job of another kind runs.
_KINDS: Final[tuple[Kind, ...]] = ("schedule", "sync", "warm")
# How often due jobs are looked for, and the progress of runs is written.
_POLL_INTERVAL_S = 0.25
# A finished job that cannot be removed from the store is repeated no sooner.
_REPEAT_PAUSE_S = 60.0
# A scheduled run ends when the next one is due, but not earlier than this. Other jobs may have many images.
_MAX_SCHEDULED_S = 3600.0
_MAX_JOB_S = 86400.0


@dataclass(frozen=True)
class SyncServices:
    """What runs work with; a reload replaces it.

    Attributes:
        interval: seconds between scheduled runs; 0 for a run only when other images are configured.
    """

    syncer: ImageSyncer
    planner: Planner
    interval: float


class SyncScheduler:
    """Keeps one store in sync. Outlives reloads.

    Args:
        rounds: of the cluster; None if this mirror is no node of one.
        orders: of the cluster, like `rounds`.
    """

    def __init__(
        self,
        store: Store,
        metrics: Metrics,
        services: SyncServices,
        rounds: SharedRounds | None = None,
        orders: ClusterOrders | None = None,
    ) -> None:
        self._rounds = rounds
        self._orders = orders
        self._lock_file = store.layout.sync_lock
        self._index = store.index
        self._jobs = store.jobs
        self._metrics = metrics
        self._services = services
        self._runs: dict[Kind, Run] = {}
        # The lanes without a job; the event is set when there is one more of them.
        self._idle: dict[Kind, asyncio.Future[SyncJob]] = {}
        self._is_idle = asyncio.Event()
        # Kept beside the job store, which may not be writable. No other process writes it meanwhile.
        self._written: Schedule | None = None

    def configure(self, services: SyncServices) -> None:
        """Use other services from now on, also for the images that are left of running jobs."""
        self._services = services
        for run in self._runs.values():
            run.syncer = services.syncer

    async def run(self) -> None:
        """Work until cancelled. Unfinished jobs continue after the next start."""
        with contextlib.closing(LeaderLock(self._lock_file)) as leader:
            await leader.elected()
            self._metrics.sync_last_success.set(self._jobs.state("succeeded", float))
            reports = [] if self._orders is None else [self._orders.run()]
            lanes = [self._lane(kind) for kind in _KINDS]
            await together([self._find_jobs(), *lanes, self._write_progress(), *reports])

    async def _find_jobs(self) -> None:
        """Give lanes their next jobs. One turn of a thread looks for all of them: each turn disturbs the event loop."""
        while True:
            self._is_idle.clear()
            services = self._services
            # A thousand jobs take some milliseconds to read.
            jobs = await asyncio.to_thread(self._next, tuple(self._idle)) if self._idle else []
            if services is not self._services:
                # With the new configuration it may not be due.
                continue
            for job in jobs:
                self._idle.pop(job.kind).set_result(job)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_POLL_INTERVAL_S):
                    await self._is_idle.wait()

    async def _lane(self, kind: Kind) -> None:
        last: SyncJob | None = None
        while True:
            next_job = self._idle[kind] = asyncio.get_running_loop().create_future()
            self._is_idle.set()
            job = await next_job
            if job == last and kind != "schedule":
                # It could not be removed: the job store is not writable.
                await asyncio.sleep(_REPEAT_PAUSE_S)
            last = job
            await self._carry_out(job)

    async def _write_progress(self) -> None:
        """Write the progress of the runs for the other processes."""
        written: list[dict[str, Any]] | None = None
        while True:
            running = [run.snapshot() for run in self._runs.values()]
            if running != written:
                written = running
                await asyncio.to_thread(self._jobs.put_state, "running", running)
            await asyncio.sleep(_POLL_INTERVAL_S)

    # ---- the next job

    def _next(self, kinds: Collection[Kind]) -> list[SyncJob]:
        """Return the due jobs of these kinds, at most one of each; ends those that are cancelled."""
        self._end_cancelled(kinds)
        jobs = [job for name, row in self._jobs.pending() if (job := SyncJob.read(name, row)) is not None]
        found = [self._scheduled() if kind == "schedule" else self._waiting(kind, jobs) for kind in kinds]
        return [job for job in found if job is not None]

    def _waiting(self, kind: Kind, jobs: list[SyncJob]) -> SyncJob | None:
        """Return the due job of a kind that has waited longest."""
        due = [job for job in jobs if job.kind == kind and job.is_due(time.time())]
        for job in sorted(due, key=lambda job: job.asked):
            row = self._jobs.get(job.name)
            if row is not None:
                return SyncJob.read(job.name, row)
            # A part of it is lost, or it has just been removed: it must not block the others.
            self._jobs.delete(job.name)
        return None

    def _scheduled(self) -> SyncJob | None:
        """Return the scheduled job if it is due; an unfinished round is continued."""
        services, now = self._services, time.time()
        images = services.planner.has_images or bool(self._jobs.state("kept", dict))
        began = round_to_run(self._schedule(), services.planner.fingerprint, services.interval, now, images=images)
        return None if began is None else SyncJob("schedule", "schedule", (), (), began, now, "schedule")

    def _schedule(self) -> Schedule | None:
        return self._written or Schedule.read(self._jobs.state("schedule", dict))

    # ---- carrying out

    async def _carry_out(self, job: SyncJob) -> None:
        services = self._services
        run = Run(job, services.syncer, self._jobs, self._metrics)
        if job.share != "own" and self._orders is not None:
            since = await self._orders.begin(job)
            if since is None:
                await asyncio.to_thread(self._end_unbegun, job)
                return
            run.since = since
        self._runs[job.kind] = run
        # The plan is made with one configuration; each image is then synced with the current one.
        planning = contextlib.ExitStack()
        planning.enter_context(services.syncer.keep_open())
        try:
            if job.kind == "schedule":
                summary = await self._run_scheduled(job, run, services, planning)
            else:
                planned = self._plan(replace(job, asked=run.since), services, planning)
                summary = await self._while_wanted(run, run.carry_out(planned, _MAX_JOB_S), job)
            if summary is not None:
                await asyncio.to_thread(self._write_end, job, summary)
        finally:
            planning.close()
            del self._runs[job.kind]

    async def _run_scheduled(
        self, job: SyncJob, run: Run, services: SyncServices, planning: contextlib.ExitStack
    ) -> Summary | None:
        """Return the summary of a scheduled run; None if other images were configured meanwhile."""
        began, fingerprint = time.time(), services.planner.fingerprint
        if self._rounds is not None and services.interval > 0:
            # What another node has checked since the round began is not checked again.
            run.since = min(job.asked, began - await self._rounds.join(services.interval))
            job = replace(job, asked=run.since)
        await self._write_schedule(Schedule(job.asked, began, began, True, fingerprint))
        carried_out = run.carry_out(self._plan(job, services, planning), max(_MAX_SCHEDULED_S, services.interval))
        summary = await self._while_wanted(run, carried_out, job, fingerprint)
        if summary is not None:
            following = after(began, services.interval, random.random())  # noqa: S311 - no secret
            unfinished = summary.result in ("limited", "timeout")
            await self._write_schedule(Schedule(job.asked, began, following, unfinished, fingerprint))
        return summary

    async def _while_wanted(
        self, run: Run, work: Coroutine[Any, Any, Summary], job: SyncJob, fingerprint: str | None = None
    ) -> Summary | None:
        """Return the result of a run, which ends early if an operator cancels it.

        If other images are configured than at `fingerprint`, it ends without a result, and their round starts anew. Downloads
        that have begun continue then.
        """
        running = asyncio.get_running_loop().create_task(work)
        try:
            while not running.done():
                await asyncio.wait([running], timeout=_POLL_INTERVAL_S)
                if await asyncio.to_thread(self._end_cancelled, (job.kind,), job):
                    break
                if not running.done() and fingerprint not in (None, self._services.planner.fingerprint):
                    return None
        finally:
            running.cancel()
            await asyncio.wait([running])
        return run.cancel() if running.cancelled() else running.result()

    def _end_cancelled(self, kinds: Collection[Kind], running: SyncJob | None = None) -> bool:
        """End the cancelled jobs of these kinds that wait; returns whether the `running` one is cancelled."""
        for name in self._jobs.cancellations():
            row = self._jobs.get(name)
            job = None if row is None else SyncJob.read(name, row)
            if job is None or job.kind not in kinds or (running is not None and name == running.name):
                continue
            if self._jobs.is_cancelled(name, job.created):
                self._end_unbegun(job)
        return running is not None and self._jobs.is_cancelled(running.name, running.created)

    def _end_unbegun(self, job: SyncJob) -> None:
        """End a job as cancelled that has not begun."""
        now = time.time()
        self._write_end(job, Summary(job.name, job.kind, job.by, job.created, now, now, "cancelled"))
        self._metrics.sync_runs.labels("cancelled").inc()
        log.info("sync_ended", order=job.name, by=job.by, result="cancelled")

    def _write_end(self, job: SyncJob, summary: Summary) -> None:
        if job.kind == "schedule" and summary.result == "completed":
            self._metrics.sync_last_success.set(summary.ended or 0.0)
            self._jobs.put_state("succeeded", summary.ended)
        self._jobs.put_state(f"last {job.kind}", summary.row())
        self._jobs.put_done(job.name, summary.row())
        self._jobs.delete_unchanged(job.name, job.row())
        self._jobs.delete_cancellation(job.name, job.created)

    async def _plan(self, job: SyncJob, services: SyncServices, planning: contextlib.ExitStack) -> Plan:
        kept = self._jobs.kept()

        def done(target: Target) -> bool:
            return is_settled(target, self._jobs.result(str(target)), job.asked)

        with planning:
            plan = await services.planner.plan(job, self._index.tags, kept, time.time(), done)
        # Written before anything is fetched: the new content must not evict what is kept.
        now_kept = plan.kept if job.kind == "schedule" else {**kept, **plan.kept}
        if now_kept != kept:
            await asyncio.to_thread(self._jobs.put_state, "kept", now_kept)
        return plan

    async def _write_schedule(self, schedule: Schedule) -> None:
        self._written = schedule
        await asyncio.to_thread(self._jobs.put_state, "schedule", schedule.row())
