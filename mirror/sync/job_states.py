"""What the processes of a store know of its jobs: any of them adds one and tells its state, whichever carries it out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import structlog

from mirror.storage.job_store import JobStore
from mirror.sync.job import SyncJob

log = structlog.get_logger(__name__)

UNFINISHED = frozenset({"waiting", "running"})
"""The results of jobs that have not ended."""

# Jobs that may wait; each is a row of the job store.
_MAX_JOBS = 1000


def add_job(jobs: JobStore, job: SyncJob) -> bool:
    """Have a job carried out; False (logged) if too many wait, or the index cannot be written. Blocks."""
    if jobs.count_pending() >= _MAX_JOBS or not jobs.put(job.name, job.row()):
        log.warning("order_refused", order=job.name, most=_MAX_JOBS)
        return False
    return True


def running_jobs(jobs: JobStore) -> list[dict[str, Any]]:
    """Return the states of the jobs that are being carried out. Blocks."""
    return [run for run in jobs.state("running", list) if isinstance(run, dict) and "name" in run]


def waiting_jobs(jobs: JobStore, running: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the jobs that wait, given those that run. Blocks."""
    started = {run["name"] for run in running}
    rows = ((SyncJob.read(name, row), row.get("more", 0)) for name, row in jobs.pending() if name not in started)
    return [{"name": job.name, **job.row(), "more": more} for job, more in rows if job is not None]


def job_states(jobs: JobStore, names: Iterable[str]) -> dict[str, dict[str, Any] | None]:
    """Return the state of each job, by name; None if there is none of that name. Blocks; costs a read of all waiting jobs."""
    running = running_jobs(jobs)
    known = {job["name"]: {**job, "result": "waiting"} for job in waiting_jobs(jobs, running)} | {
        run["name"]: run for run in running
    }
    return {name: jobs.done(name) or known.get(name) for name in names}


def job_state(jobs: JobStore, name: str) -> dict[str, Any] | None:
    """Return the state of a job; None if there is none of that name. Blocks."""
    return job_states(jobs, [name])[name]


def cancel_job(jobs: JobStore, name: str) -> bool:
    """Have a job cancelled that waits or runs; it ends a moment later. False if there is none, or the index cannot be written."""
    state = job_state(jobs, name)
    if state is None or state["result"] not in UNFINISHED:
        return False
    created = float(state["created"] if "created" in state else state["asked"])
    jobs.put_cancellation(name, created)
    return jobs.is_cancelled(name, created)
