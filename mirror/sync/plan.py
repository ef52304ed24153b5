"""Plans a job: which images it means. Globs of configured images are matched with upstream's tags."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TypeAlias

from mirror.config.model import Config
from mirror.core.errors import InvalidInput
from mirror.core.freshness import TagRecord
from mirror.core.image_selector import ImageSelector
from mirror.core.names import ImagePattern, Repository, Tag
from mirror.core.platform import Platform
from mirror.core.popularity import Pulls
from mirror.errors import MirrorError, UpstreamRateLimited
from mirror.sync.image_syncer import ImageSyncer, Target
from mirror.sync.job import SyncJob

ListTags: TypeAlias = Callable[[Repository], Awaitable[list[str]]]


@dataclass(frozen=True, slots=True)
class CachedTag:
    """A tag that the index has a record of."""

    repository: Repository
    tag: Tag
    record: TagRecord
    pulls: Pulls


@dataclass
class Plan:
    """What a job is to do.

    Attributes:
        targets: by name, the most pulled first.
        problems: by what the job names, why nothing is done about it.
        limited: a pull limit leaves a part of the job for the next run.
        kept: the images that each configured entry stands for now, by the entry's text; they are evicted last.
    """

    targets: dict[str, Target] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    kept: dict[str, list[str]] = field(default_factory=dict)
    limited: bool = False

    def refuse(self, text: str, cause: Exception) -> None:
        """Record why nothing is done about a part of the job."""
        self.problems[text] = str(cause)
        self.limited = self.limited or isinstance(cause, UpstreamRateLimited)

    def include(self, other: Plan) -> None:
        """Add the targets of another plan."""
        for target in other.targets.values():
            self.add(target)

    def add(self, target: Target) -> None:
        """Add an image. One that is planned already gets the platforms of both."""
        known = self.targets.get(str(target), target)
        platforms = tuple(dict.fromkeys((*known.platforms, *target.platforms)))
        self.targets[str(target)] = replace(known, platforms=platforms, fetch=known.fetch or target.fetch)


class Planner:
    """Makes plans.

    Args:
        syncer: lists upstream's tags, and knows which tags may be pulled.

    Attributes:
        fingerprint: differs if other images are configured.
    """

    def __init__(self, config: Config, syncer: ImageSyncer) -> None:
        self._selectors = config.selectors()
        self._platforms = config.sync.platforms
        self._active_within = config.sync.active_within
        self._default_registry = config.default_registry
        self._offline = config.offline_registries
        self._syncer = syncer
        self.fingerprint = repr((self._selectors, self._platforms))

    @property
    def has_images(self) -> bool:
        """Whether any image is configured."""
        return bool(self._selectors)

    async def plan(
        self,
        job: SyncJob,
        cached: Iterable[CachedTag],
        kept: dict[str, list[str]],
        now: float,
        done: Callable[[Target], bool] = lambda _: False,
    ) -> Plan:
        """Return the plan of a job.

        Args:
            kept: the images of each configured entry at the last run; unchanged where upstream cannot be asked.
            done: whether a configured image was synced in an earlier part of the same round.
        """
        plan, list_tags = Plan(), _once(self._syncer.tags)
        if job.kind == "warm":
            await self._warm(job, list_tags, plan)
            return plan
        # With a hundred thousand tags each step takes hundreds of milliseconds: none runs on the event loop.
        pulled = await asyncio.to_thread(self._pullable, cached)
        if job.kind == "schedule" or not job.images:
            await self._configured(self._selectors, kept, list_tags, plan)
            plan.targets = {name: target for name, target in plan.targets.items() if not done(target)}
            active = (entry for entry in pulled.values() if now - entry.record.pulled <= self._active_within)
            due = (entry for entry in active if not job.asked <= entry.record.checked <= now)
            await asyncio.to_thread(_add_cached, due, plan)
        else:
            for text in job.images:
                await self._matching(text, pulled.values(), kept, list_tags, plan)
        plan.targets = await asyncio.to_thread(_most_pulled_first, plan.targets, pulled, now)
        return plan

    def _pullable(self, cached: Iterable[CachedTag]) -> dict[tuple[Repository, Tag], CachedTag]:
        asked = (entry for entry in cached if entry.repository.registry not in self._offline)
        return {(entry.repository, entry.tag): entry for entry in asked if self._syncer.may_pull(entry.repository, entry.tag)}

    async def _warm(self, job: SyncJob, list_tags: ListTags, plan: Plan) -> None:
        for name in job.images:
            try:
                chosen = tuple(map(Platform.parse, job.platforms)) or self._platforms
                selector = ImageSelector.parse(name, default_registry=self._default_registry, platforms=chosen)
                targets = await _targets(selector, chosen, list_tags)
            except (InvalidInput, MirrorError) as error:
                plan.refuse(name, error)
                continue
            for target in targets:
                plan.add(target)
            if not targets:
                plan.problems[name] = "upstream has no such tag"

    async def _configured(
        self, selectors: Iterable[ImageSelector], kept: dict[str, list[str]], list_tags: ListTags, plan: Plan
    ) -> None:
        for selector in selectors:
            name = _text(selector)
            if selector.repository.registry in self._offline:
                # Its images are still evicted last.
                plan.kept[name] = kept.get(name, [])
                continue
            try:
                targets = await _targets(selector, selector.platforms or self._platforms, list_tags)
            except MirrorError as error:
                plan.refuse(name, error)
                plan.kept[name] = kept.get(name, [])
                continue
            plan.kept[name] = [str(target) for target in targets]
            for target in targets:
                plan.add(target)

    async def _matching(
        self, text: str, cached: Collection[CachedTag], kept: dict[str, list[str]], list_tags: ListTags, plan: Plan
    ) -> None:
        """Add the cached and configured images that match an operator's pattern."""
        try:
            pattern = ImagePattern.parse(text, self._default_registry)
        except InvalidInput as error:
            plan.refuse(text, error)
            return
        matching = Plan()
        await asyncio.to_thread(_add_cached, _filtered(pattern, cached), matching)
        configured = Plan()
        selectors = (entry for entry in self._selectors if pattern.matches_repository(entry.repository))
        await self._configured(selectors, kept, list_tags, configured)
        for target in configured.targets.values():
            if _covers(pattern, target):
                matching.add(target)
        plan.kept.update(configured.kept)
        plan.problems.update(configured.problems)
        plan.limited = plan.limited or configured.limited
        await asyncio.to_thread(plan.include, matching)
        if not matching.targets and not configured.problems:
            plan.problems[text] = "nothing of that name is held here or configured; `warm` fetches it"


async def _targets(selector: ImageSelector, platforms: tuple[Platform, ...], list_tags: ListTags) -> list[Target]:
    repository = selector.repository
    if selector.reference is not None:
        return [Target(repository, selector.reference, platforms, fetch=True)]
    # A hundred thousand tags take too long for the event loop.
    tags = await asyncio.to_thread(selector.select, await list_tags(repository))
    return [Target(repository, tag, platforms, fetch=True) for tag in tags]


def _once(list_tags: ListTags) -> ListTags:
    """Return a function that lists the tags of each repository once, and repeats the tags or the error."""
    found: dict[Repository, list[str] | MirrorError] = {}

    async def listed(repository: Repository) -> list[str]:
        if repository not in found:
            try:
                found[repository] = await list_tags(repository)
            except MirrorError as error:
                found[repository] = error
        answer = found[repository]
        if isinstance(answer, MirrorError):
            raise answer
        return answer

    return listed


def _filtered(pattern: ImagePattern, cached: Iterable[CachedTag]) -> Iterator[CachedTag]:
    return (entry for entry in cached if pattern.matches(entry.repository, entry.tag, entry.record.digest))


def _text(selector: ImageSelector) -> str:
    """Return a text that is different for each selector."""
    choice = f" {selector.versions}" if selector.versions is not None else ""
    return f"{selector}{choice}" + (f" newest {selector.newest}" if selector.newest is not None else "")


def _add_cached(cached: Iterable[CachedTag], plan: Plan) -> None:
    for entry in cached:
        plan.add(Target(entry.repository, entry.tag))


def _covers(pattern: ImagePattern, target: Target) -> bool:
    if isinstance(target.reference, Tag):
        return pattern.matches(target.repository, target.reference, None)
    return pattern.matches(target.repository, None, target.reference)


def _most_pulled_first(
    targets: dict[str, Target], cached: dict[tuple[Repository, Tag], CachedTag], now: float
) -> dict[str, Target]:
    return dict(sorted(targets.items(), key=lambda item: -_weight(cached, item[1], now)))


def _weight(cached: dict[tuple[Repository, Tag], CachedTag], target: Target, now: float) -> float:
    reference = target.reference
    entry = cached.get((target.repository, reference)) if isinstance(reference, Tag) else None
    return entry.pulls.at(now) if entry is not None else 0.0
