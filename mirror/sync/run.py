"""Carries one job out, from its first image to its last: a few at a time, within the pull limits and a bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Awaitable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import structlog

from mirror.aio import together
from mirror.errors import UpstreamRateLimited
from mirror.metrics import Metrics
from mirror.storage.job_store import JobStore
from mirror.sync.image_syncer import ImageSyncer, SyncResult, Target
from mirror.sync.job import SyncJob
from mirror.sync.plan import Plan
from mirror.sync.progress import Progress

log = structlog.get_logger(__name__)

# Images that are synced at a time, of one registry and of all.
_MAX_IMAGES_PER_REGISTRY = 4
_MAX_IMAGES = 8
_HEAD_START_S = 1.0
# An image that takes longer has failed; its downloads continue, and the next run finds their content.
_IMAGE_TIMEOUT_S = 3600.0
_MAX_PROBLEMS = 100
_MAX_RECENT = 50
_SETTLED = frozenset({"unchanged", "completed", "moved", "held_back", "untrusted", "gone"})


@dataclass
class Summary:
    """The state of a job. Times are seconds since the epoch.

    Attributes:
        result: `running`, `completed`; `limited` if images are left for the next run; `failed` if some could not be synced;
            `timeout` if the run took too long; `cancelled` by an operator.
        created: when the job was created.
        total: images of the job.
        tags: images by status.
        bytes_fetched: fetched from upstream.
        bytes_held: in the store already.
        problems: by image, why it is not in sync; at most a hundred.
        absent: what the job names that only other nodes may hold; at most a hundred.
        recent: the results of the last images.
    """

    name: str
    kind: str
    by: str
    created: float
    began: float
    ended: float | None = None
    result: str = "running"
    total: int = 0
    tags: Counter[str] = field(default_factory=Counter)
    bytes_fetched: int = 0
    bytes_held: int = 0
    problems: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    recent: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_MAX_RECENT))

    def row(self) -> dict[str, Any]:
        """Return its row in the job store."""
        return {**asdict(self), "tags": dict(self.tags), "recent": list(self.recent)}


class Run:
    """One job that is being carried out.

    Attributes:
        summary: its state.
        syncer: syncs the images that are left; a reload replaces it.
        since: checks of other nodes that began later count, in seconds since the epoch.
    """

    def __init__(self, job: SyncJob, syncer: ImageSyncer, jobs: JobStore, metrics: Metrics) -> None:
        self.summary = Summary(job.name, job.kind, job.by, job.created, time.time())
        self.syncer = syncer
        self.since = job.asked
        self._jobs = jobs
        self._metrics = metrics
        # Its own: no other run holds it up.
        self._slots = asyncio.Semaphore(_MAX_IMAGES)
        self._running: dict[str, Progress] = {}
        # The images at which `carry_out` was cancelled.
        self._interrupted: list[Progress] = []
        # Registries that this run has stopped asking, with the reason.
        self._skipped: dict[str, str] = {}

    def snapshot(self) -> dict[str, Any]:
        """Return its state and the progress of its images. It is running until its end is written."""
        images = [progress.snapshot() for progress in self._running.values()]
        return {**self.summary.row(), "result": "running", "images": images}

    async def carry_out(self, planned: Awaitable[Plan], timeout: float) -> Summary:
        """Sync the images of a plan within `timeout` seconds. A failure is a part of the summary."""
        summary = self.summary
        try:
            async with asyncio.timeout(timeout):
                plan = await planned
                summary.total, summary.problems = len(plan.queue), dict(islice(plan.problems.items(), _MAX_PROBLEMS))
                summary.absent = plan.absent[:_MAX_PROBLEMS]
                await together(self._registry(targets) for targets in plan.by_registry().values())
            summary.result = self._result(plan)
        except TimeoutError:
            summary.result = "timeout"
        except Exception as error:
            # It would fail again: the job is not repeated.
            log.exception("sync_bug", order=summary.name)
            summary.result = "failed"
            summary.problems["internal error"] = str(error)
        return self._ended()

    def cancel(self) -> Summary:
        """End it for an operator, after `carry_out` was cancelled: stop the downloads for which nobody else waits."""
        for progress in self._interrupted:
            self.syncer.stop_fetching(progress)
            self.summary.bytes_fetched += progress.fetched
            self.summary.bytes_held += progress.held
        self.summary.result = "cancelled"
        return self._ended()

    def _ended(self) -> Summary:
        summary = self.summary
        summary.ended = time.time()
        self._metrics.sync_runs.labels(summary.result).inc()
        log.info(
            "sync_ended",
            order=summary.name,
            by=summary.by,
            result=summary.result,
            images=summary.total,
            **summary.tags,
            bytes_fetched=summary.bytes_fetched,
            bytes_held=summary.bytes_held,
            seconds=round(summary.ended - summary.began, 1),
        )
        return summary

    def _result(self, plan: Plan) -> str:
        # An image without a result lost its configuration during the run.
        if self.summary.tags["skipped"] or plan.limited:
            return "limited"
        counted = self.summary.tags.total() == self.summary.total
        return "completed" if counted and not self.summary.problems else "failed"

    async def _registry(self, waiting: Iterator[Target]) -> None:
        """Sync the images of one registry. The first has a head start, which shows whether the registry answers."""
        answered = asyncio.Event()

        async def first() -> None:
            await self._image(next(waiting))
            answered.set()
            await others()

        async def after_first() -> None:
            # The first image may take long to fetch.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(answered.wait(), _HEAD_START_S)
            await others()

        async def others() -> None:
            for target in waiting:
                await self._image(target)

        await together([first(), *(after_first() for _ in range(_MAX_IMAGES_PER_REGISTRY - 1))])

    async def _image(self, target: Target) -> None:
        async with self._slots:
            syncer = self.syncer
            progress = syncer.progress(target)
            self._running[str(target)] = progress
            try:
                with syncer.keep_open():
                    synced = await self._bounded(syncer, target, progress)
            except asyncio.CancelledError:
                self._interrupted.append(progress)
                raise
            finally:
                del self._running[str(target)]
        summary = self.summary
        summary.tags[synced.status] += 1
        summary.bytes_fetched += progress.fetched
        summary.bytes_held += progress.held
        # The metric counts what became of tags.
        self._metrics.sync_tags.labels("unchanged" if synced.status == "completed" else synced.status).inc()
        if _is_problem(target, synced) and len(summary.problems) < _MAX_PROBLEMS:
            summary.problems[str(target)] = synced.cause or synced.status
        result = _row(target, synced, progress)
        summary.recent.append({"image": str(target), **result})
        if synced.status != "skipped":
            await asyncio.to_thread(self._jobs.put_result, str(target), result)
        else:
            # Nothing else waits: a hundred thousand skipped images would hold up all requests.
            await asyncio.sleep(0)

    async def _bounded(self, syncer: ImageSyncer, target: Target, progress: Progress) -> SyncResult:
        registry = target.repository.registry
        if registry in self._skipped:
            return SyncResult("skipped", cause=self._skipped[registry])
        try:
            async with asyncio.timeout(_IMAGE_TIMEOUT_S):
                synced = await syncer.sync(target, progress, self.since)
        except UpstreamRateLimited as error:
            self._skip(registry, str(error))
            return SyncResult("skipped", cause=str(error))
        except TimeoutError:
            return SyncResult("failed", cause=f"not fetched within {_IMAGE_TIMEOUT_S:.0f} s; its downloads continue")
        if _is_problem(target, synced):
            log.warning("sync_failed", image=str(target), cause=synced.cause)
        if synced.status == "failed" and not syncer.may_ask(registry):
            self._skip(registry, synced.cause or synced.status)
        return synced

    def _skip(self, registry: str, cause: str) -> None:
        if registry not in self._skipped:
            self._skipped[registry] = cause
            rest = "comes in the next run" if self.summary.kind == "schedule" else "has to be ordered again"
            log.warning("sync_left", registry=registry, cause=cause, rest=rest)


def _is_problem(target: Target, synced: SyncResult) -> bool:
    """Whether an image is not in sync. A deleted or untrusted one is a problem only if it is configured or was asked for."""
    return synced.status in ("failed", "skipped") or (synced.status in ("gone", "untrusted") and target.fetch)


def _row(target: Target, synced: SyncResult, progress: Progress) -> dict[str, Any]:
    return {
        "platforms": [str(platform) for platform in target.platforms],
        "result": synced.status,
        "old": str(synced.old) if synced.old else None,
        "digest": str(synced.new) if synced.new else None,
        "cause": synced.cause,
        "bytes_fetched": progress.fetched,
        "bytes_held": progress.held,
        "time": time.time(),
    }


def is_settled(target: Target, result: Any, since: float) -> bool:
    """Whether a row of the job store shows that an image was synced since a time, for all its platforms."""
    try:
        synced, needed = set(result["platforms"]), {str(platform) for platform in target.platforms}
        return since <= result["time"] <= time.time() and result["result"] in _SETTLED and needed <= synced
    except (KeyError, TypeError):
        return False
