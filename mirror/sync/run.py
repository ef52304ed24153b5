"""Carries one order out, from its first image to its last: a few at once, within the budget and within a bounded time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import structlog

from mirror.aio import together
from mirror.errors import UpstreamRateLimited
from mirror.metrics import Metrics
from mirror.storage.job_store import JobStore
from mirror.sync.image_syncer import ImageSyncer, SyncResult, Target
from mirror.sync.job import Order
from mirror.sync.plan import Plan
from mirror.sync.progress import Progress

log = structlog.get_logger(__name__)

# Images that are checked or fetched side by side, of one registry and of all.
_OF_REGISTRY = 4
_AT_ONCE = 8
_HEAD_START = 1.0
# An image that is not there by then counts as failed; its downloads go on, and the next run finds what they brought. Seconds.
_LONGEST_IMAGE = 3600.0
_MAX_PROBLEMS = 100
_SETTLED = frozenset({"unchanged", "moved", "gone"})
_RECENT = 50


@dataclass
class Summary:
    """What came of an order. Times are seconds since the epoch.

    Attributes:
        result: `running`, `completed`; `limited` if images were left for the next run; `failed` if some could not be brought in
            step; `timeout` if the run had to be ended.
        total: images that were meant.
        tags: how many came out how.
        bytes_fetched: had to travel.
        bytes_held: were here already.
        problems: by image, why it is not in sync; the first of them.
        recent: what came of the images that were looked at last.
    """

    name: str
    kind: str
    by: str
    began: float
    ended: float | None = None
    result: str = "running"
    total: int = 0
    tags: Counter[str] = field(default_factory=Counter)
    bytes_fetched: int = 0
    bytes_held: int = 0
    problems: dict[str, str] = field(default_factory=dict)
    recent: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def row(self) -> dict[str, Any]:
        """For the ledger."""
        return {**asdict(self), "tags": dict(self.tags), "recent": list(self.recent)}


class Run:
    """One order being carried out.

    Args:
        bringer: called for the one of the day: the configuration may change meanwhile.
    """

    def __init__(self, order: Order, syncer: Callable[[], ImageSyncer], jobs: JobStore, metrics: Metrics) -> None:
        self.summary = Summary(order.name, order.kind, order.by, time.time())
        self._syncer = syncer
        self._jobs = jobs
        self._metrics = metrics
        # Its own: whatever another run waits for, this one goes on.
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._under_way: dict[str, Progress] = {}
        # Registries that are not asked any more in this run, and why.
        self._left: dict[str, str] = {}

    def snapshot(self) -> dict[str, Any]:
        """How far it is."""
        return {**self.summary.row(), "images": [progress.snapshot() for progress in self._under_way.values()]}

    async def carry_out(self, planned: Awaitable[Plan], bound: float) -> Summary:
        """Bring what is planned, within `bound` seconds."""
        summary = self.summary
        try:
            async with asyncio.timeout(bound):
                plan = await planned
                summary.total, summary.problems = len(plan.targets), dict(islice(plan.problems.items(), _MAX_PROBLEMS))
                await together(self._registry(targets) for targets in _by_registry(plan.targets.values()))
            summary.result = self._verdict(plan)
        except TimeoutError:
            summary.result = "timeout"
        except Exception as error:
            # An order that fails so would fail again: it has come to its end.
            log.exception("sync_bug", order=summary.name)
            summary.result = "failed"
            summary.problems["internal error"] = str(error)
        summary.ended = time.time()
        self._metrics.sync_runs.labels(summary.result).inc()
        self._log()
        return summary

    def _log(self) -> None:
        summary = self.summary
        log.info(
            "sync_ended",
            order=summary.name,
            by=summary.by,
            result=summary.result,
            images=summary.total,
            **summary.tags,
            bytes_fetched=summary.bytes_fetched,
            bytes_held=summary.bytes_held,
            seconds=round((summary.ended or summary.began) - summary.began, 1),
        )

    def _verdict(self, plan: Plan) -> str:
        """What the run as a whole came to. An image without a result was given up by a configuration that is no more."""
        if self.summary.tags["skipped"] or plan.limited:
            return "limited"
        counted = self.summary.tags.total() == self.summary.total
        return "completed" if counted and not self.summary.problems else "failed"

    async def _registry(self, targets: list[Target]) -> None:
        """The images of one registry: the first with a head start, in which it finds out whether it can be asked at all."""
        waiting, known = iter(targets), asyncio.Event()

        async def first() -> None:
            await self._image(next(waiting))
            known.set()
            await others()

        async def after_first() -> None:
            # Fetching may take long; nothing is to wait for that.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(known.wait(), _HEAD_START)
            await others()

        async def others() -> None:
            for target in waiting:
                await self._image(target)

        await together([first(), *(after_first() for _ in range(_OF_REGISTRY - 1))])

    async def _image(self, target: Target) -> None:
        async with self._slots:
            syncer = self._syncer()
            progress = syncer.progress(target)
            self._under_way[str(target)] = progress
            try:
                with syncer.held():
                    brought = await self._bounded(syncer, target, progress)
            finally:
                del self._under_way[str(target)]
        summary = self.summary
        summary.tags[brought.word] += 1
        summary.bytes_fetched += progress.fetched
        summary.bytes_held += progress.held
        self._metrics.sync_tags.labels(brought.word).inc()
        if _is_problem(target, brought) and len(summary.problems) < _MAX_PROBLEMS:
            summary.problems[str(target)] = brought.cause or brought.word
        result = _result(target, brought, progress)
        summary.recent.append({"image": str(target), **result})
        if brought.word != "skipped":
            await asyncio.to_thread(self._jobs.put_result, str(target), result)

    async def _bounded(self, syncer: ImageSyncer, target: Target, progress: Progress) -> SyncResult:
        registry = target.repository.registry
        if registry in self._left:
            return SyncResult("skipped", cause=self._left[registry])
        try:
            async with asyncio.timeout(_LONGEST_IMAGE):
                brought = await syncer.bring(target, progress)
        except UpstreamRateLimited as error:
            self._leave(registry, str(error))
            return SyncResult("skipped", cause=str(error))
        except TimeoutError:
            return SyncResult("failed", cause=f"not there within {_LONGEST_IMAGE:.0f} s; what has been begun goes on")
        if _is_problem(target, brought):
            log.warning("sync_failed", image=str(target), cause=brought.cause)
        if brought.word == "failed" and not syncer.may_ask(registry):
            self._leave(registry, brought.cause or brought.word)
        return brought

    def _leave(self, registry: str, why: str) -> None:
        if registry not in self._left:
            self._left[registry] = why
            log.warning("sync_left", registry=registry, cause=why, rest=self._rest())

    def _rest(self) -> str:
        return "comes in the next run" if self.summary.kind == "schedule" else "has to be ordered again"


def _is_problem(target: Target, brought: SyncResult) -> bool:
    """Whether an image is not what it should be. That a tag has been deleted is an answer, but not where the image is wanted."""
    return brought.word in ("failed", "skipped") or (brought.word == "gone" and target.fetch)


def _by_registry(targets: Iterable[Target]) -> list[list[Target]]:
    found: dict[str, list[Target]] = {}
    for target in targets:
        found.setdefault(target.repository.registry, []).append(target)
    return list(found.values())


def _result(target: Target, brought: SyncResult, progress: Progress) -> dict[str, Any]:
    return {
        "platforms": [str(platform) for platform in target.platforms],
        "result": brought.word,
        "old": str(brought.old) if brought.old else None,
        "digest": str(brought.new) if brought.new else None,
        "cause": brought.cause,
        "bytes_fetched": progress.fetched,
        "bytes_held": progress.held,
        "time": time.time(),
    }


def is_settled(target: Target, result: Any, since: float) -> bool:
    """Whether a result, as it is in the ledger, says that an image was brought in sync since then, for all its platforms."""
    try:
        asked, wanted = set(result["platforms"]), {str(platform) for platform in target.platforms}
        return since <= result["time"] <= time.time() and result["result"] in _SETTLED and wanted <= asked
    except (KeyError, TypeError):
        return False
