"""This node's part in the orders of its cluster: takes them from the other nodes, and reports to them."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from dataclasses import replace
from typing import Any

import structlog

from mirror.cluster.events import Event
from mirror.cluster.link import LinkDown
from mirror.cluster.node import ClusterNode
from mirror.cluster.orders import Heard, OrderRecord, SharedJob
from mirror.cluster.turns import attempts
from mirror.storage.job_store import JobStore
from mirror.sync.job import Given, SyncJob
from mirror.sync.job_states import UNFINISHED, add_job, cancel_job, job_state, job_states
from mirror.sync.order_states import merged, report_of

log = structlog.get_logger(__name__)

# How often a report is written while it changes.
_INTERVAL_S = 1.0
# All nodes begin an order a moment after it was given: meanwhile the same one, given to another node, is the same order.
_GATHER_S = 0.5
# How long Redis may be away between the event of an order and its reading.
_READ_TIMEOUT_S = 10.0
# Only jobs of operators are shared; see `by_operator`.
_NAME = re.compile(r"[0-9]{1,20}-[0-9a-f]{8}")


class ClusterOrders:
    """Gives orders to the nodes, and carries the orders of other nodes to this one's store. Outlives reloads."""

    def __init__(self, jobs: JobStore, node: ClusterNode) -> None:
        self._jobs = jobs
        self._orders = node.orders
        self._me = node.name
        # By name, what was reported last, and when.
        self._reported: dict[str, tuple[dict[str, Any], float]] = {}
        node.events.handlers["ordered"] = self._ordered
        node.events.handlers["order_cancelled"] = self._cancelled

    async def give(self, job: SyncJob) -> Given | None:
        """Share a job; without Redis it is this node's own. None (logged) if it cannot be added."""
        job = replace(job, share="one" if job.kind == "warm" else "all", after=job.asked + _GATHER_S)
        untold = None
        try:
            name = await self._orders.add(job.name, job.share, job.row())
        except LinkDown as error:
            log.warning("order_not_shared", order=job.name, cause=str(error), consequence="only this node knows of it")
            name, job, untold = job.name, replace(job, share="own"), "Redis does not answer, so only this node knows of the order"
        if name != job.name or await asyncio.to_thread(self._accept, job):
            return Given(name, untold)
        with contextlib.suppress(LinkDown):
            await self._orders.cancel(name)
        return None

    async def state(self, name: str) -> dict[str, Any] | None:
        """Return the state of an order, with that of each node; None if it is no shared one. Raises LinkDown."""
        record = await self._orders.read(name) if _NAME.fullmatch(name) else None
        return None if record is None else merged(record, self._orders.lost_after_s)

    async def elsewhere(self) -> list[dict[str, Any]]:
        """Return the states of unfinished orders that only another node carries out; none without Redis."""
        found = []
        with contextlib.suppress(LinkDown):
            for record in await self._orders.open_for_one():
                state = None if record.owner == self._me else merged(record, self._orders.lost_after_s)
                if state is not None and state["result"] in UNFINISHED:
                    found.append(state)
        return found

    async def cancel(self, name: str) -> bool:
        """Have all nodes cancel an order; False if it is no shared one. Raises LinkDown."""
        return bool(_NAME.fullmatch(name)) and await self._orders.cancel(name)

    async def begin(self, job: SyncJob) -> float | None:
        """Begin this node's part of an order.

        Returns the time since when checks of other nodes count for it, in seconds since the epoch; None if it is not to be
        carried out: it is cancelled, or another node has taken it over.
        """
        await asyncio.to_thread(self._jobs.put_shared, job.name, job.row())
        try:
            age = await self._orders.begin(job.name, job.share, job.row())
        except LinkDown:
            # It may have been given to another node since.
            return time.time()
        return None if age is None else max(job.asked, time.time() - age)

    async def run(self) -> None:
        """Report to the other nodes, and take orders over, until cancelled. Only the process that syncs may."""
        looked = 0.0
        while True:
            try:
                for job, report in await asyncio.to_thread(self._due):
                    await self._report(job, report)
                if time.monotonic() - looked >= self._orders.report_interval_s:
                    looked = time.monotonic()
                    await self._take_over()
            except LinkDown:
                pass
            except Exception:
                # Syncing must not end with it.
                log.exception("orders_bug")
            await asyncio.sleep(_INTERVAL_S)

    # ---- reports

    def _due(self) -> list[tuple[SyncJob, dict[str, Any]]]:
        """Return what is to be reported now: what has changed, and what was reported too long ago."""
        due, now = [], time.monotonic()
        shared = self._jobs.shared()
        states = job_states(self._jobs, [name for name, _ in shared]) if shared else {}
        for name, row in shared:
            job = SyncJob.read(name, row)
            if job is None or job.share == "own":
                self._jobs.delete_shared(name)
                continue
            report = report_of(states[name])
            known, when = self._reported.get(name, (None, 0.0))
            if report != known or now - when >= self._orders.report_interval_s:
                due.append((job, report))
        return due

    async def _report(self, job: SyncJob, report: dict[str, Any]) -> None:
        is_last = report["result"] not in UNFINISHED
        heard = await self._orders.report(job.name, job.share, job.row(), report, is_last=is_last)
        self._reported[job.name] = report, time.monotonic()
        if heard is not Heard.TOLD and not is_last:
            await asyncio.to_thread(cancel_job, self._jobs, job.name)
        if heard is Heard.OTHER:
            log.warning("order_lost", order=job.name, cause="another node has taken it over")
        if is_last or heard is Heard.OTHER:
            del self._reported[job.name]
            await asyncio.to_thread(self._jobs.delete_shared, job.name)

    async def _take_over(self) -> None:
        found = await self._orders.take_over()
        job = None if found is None else _read(found[0])
        if found is None or job is None:
            return
        log.warning("order_taken_over", order=job.name, of=found[1])
        await asyncio.to_thread(self._accept, job)

    # ---- orders of other nodes

    async def _ordered(self, event: Event) -> None:
        """Take an order for all nodes."""
        record = await self._recorded(event.fields["order"])
        job = None if record is None or record.is_cancelled else _read(record.job)
        if job is None or await asyncio.to_thread(self._is_known, job.name):
            return
        if await asyncio.to_thread(self._accept, job):
            log.info("ordered_by_node", order=job.name, of=event.node)
        else:
            refused = {"result": "failed", "cause": "too many orders wait there, or its index cannot be written"}
            await self._orders.report(job.name, job.share, job.row(), refused, is_last=True)

    async def _recorded(self, name: str) -> OrderRecord | None:
        async for _ in attempts(_READ_TIMEOUT_S):
            with contextlib.suppress(LinkDown):
                return await self._orders.read(name)
        log.warning("order_missed", order=name, cause="Redis does not answer", consequence="this node does not carry it out")
        return None

    async def _cancelled(self, event: Event) -> None:
        if _NAME.fullmatch(event.fields["order"]):
            await asyncio.to_thread(cancel_job, self._jobs, event.fields["order"])

    def _is_known(self, name: str) -> bool:
        return job_state(self._jobs, name) is not None

    def _accept(self, job: SyncJob) -> bool:
        """Add a job that this node may have had before."""
        self._jobs.delete_done(job.name)
        if not add_job(self._jobs, job):
            return False
        if job.share != "own":
            self._jobs.put_shared(job.name, job.row())
        return True


def _read(shared: SharedJob) -> SyncJob | None:
    """Return an order as this node's job; None if it is none of this version."""
    job = SyncJob.read(shared.name, shared.row) if _NAME.fullmatch(shared.name) else None
    if job is None or job.share == "own" or job.kind == "schedule":
        return None
    asked = time.time() - shared.age
    return replace(job, asked=asked, after=asked + _GATHER_S)
