"""Plans a job: which images it means. Globs of configured images are matched with upstream's tags."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final, TypeAlias

from mirror.config.model import Config
from mirror.core.errors import InvalidInput
from mirror.core.freshness import TagRecord
from mirror.core.image_selector import ImageSelector
from mirror.core.names import ImagePattern, Reference, Repository, Tag
from mirror.core.platform import Platform
from mirror.core.popularity import NONE, Pulls
from mirror.errors import MirrorError, UpstreamRateLimited
from mirror.storage.tags import Tags
from mirror.sync.image_syncer import ImageSyncer, Target
from mirror.sync.job import SyncJob
from mirror.sync.queue import ImageQueue

NOT_HELD: Final = "nothing of that name is held here or configured; `warm` fetches it"
"""Why nothing is done about a pattern of an operator."""

ListTags: TypeAlias = Callable[[Repository], Awaitable[list[str]]]


@dataclass
class Plan:
    """What a job is to do.

    Attributes:
        targets: by name, the images that are configured or named.
        queue: all images, the most pulled first; those beside `targets` are cached tags.
        problems: by what the job names, why nothing is done about it.
        absent: what the job names that matches nothing here, if other nodes carry it out, too; otherwise it is a problem.
        limited: a pull limit leaves a part of the job for the next run.
        kept: the images that each configured entry stands for now, by the entry's text; they are evicted last.
    """

    targets: dict[str, Target] = field(default_factory=dict)
    queue: ImageQueue = field(default_factory=ImageQueue)
    problems: dict[str, str] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)
    kept: dict[str, list[str]] = field(default_factory=dict)
    limited: bool = False

    def refuse(self, text: str, cause: Exception) -> None:
        """Record why nothing is done about a part of the job."""
        self.problems[text] = str(cause)
        self.limited = self.limited or isinstance(cause, UpstreamRateLimited)

    def include(self, other: Plan) -> None:
        """Add everything of another plan but its queue."""
        for target in other.targets.values():
            self.add(target)
        self.kept.update(other.kept)
        self.problems.update(other.problems)
        self.limited = self.limited or other.limited

    def add(self, target: Target) -> None:
        """Add an image. One that is planned already gets the platforms of both."""
        known = self.targets.get(str(target), target)
        platforms = tuple(dict.fromkeys((*known.platforms, *target.platforms)))
        self.targets[str(target)] = replace(known, platforms=platforms, fetch=known.fetch or target.fetch)

    def by_registry(self) -> dict[str, Iterator[Target]]:
        """Return the images of each registry, in order."""
        return {registry: map(self._target, images) for registry, images in self.queue.take().items()}

    def _target(self, image: tuple[Repository, Reference]) -> Target:
        target = Target(*image)
        return self.targets.get(str(target), target)


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
        cached: Tags,
        kept: dict[str, list[str]],
        now: float,
        done: Callable[[Target], bool] = lambda _: False,
    ) -> Plan:
        """Return the plan of a job.

        Args:
            cached: the tags that the index has records of.
            kept: the images of each configured entry at the last run; unchanged where upstream cannot be asked.
            done: whether a configured image was synced in an earlier part of the same round; called in a thread.
        """
        plan, list_tags = Plan(), _once(self._syncer.tags)
        # With a hundred thousand tags each step takes hundreds of milliseconds: none runs on the event loop.
        if job.kind == "warm":
            await self._warm(job, list_tags, plan)
            await asyncio.to_thread(_enqueue_as_named, plan)
        elif job.kind == "schedule" or not job.images:
            plan.targets = await self._configured(self._selectors, kept, list_tags, plan)
            await asyncio.to_thread(self._enqueue_due, job, cached, plan, now, done)
        else:
            absent = await self._named(job.images, cached, kept, list_tags, plan, now)
            if job.share == "all":
                plan.absent = absent
            else:
                plan.problems |= dict.fromkeys(absent, NOT_HELD)
        await asyncio.to_thread(plan.queue.sort)
        return plan

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
    ) -> dict[str, Target]:
        """Return the images that configured entries select, by name."""
        found = Plan()
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
                found.add(target)
        return found.targets

    def _enqueue_due(self, job: SyncJob, cached: Tags, plan: Plan, now: float, done: Callable[[Target], bool]) -> None:
        """Queue the configured images that are not done, and the cached tags in use that were not checked since the job began."""
        plan.targets = {name: target for name, target in plan.targets.items() if not done(target)}

        def is_due(record: TagRecord) -> bool:
            return now - record.pulled <= self._active_within and not job.asked <= record.checked <= now

        for repository, tag, record, pulls in self._pullable(cached):
            if is_due(record) and f"{repository}:{tag}" not in plan.targets:
                plan.queue.add(repository, tag, _rank(pulls, now))
        _enqueue_targets(plan, cached, now)

    def _pullable(self, cached: Tags, pattern: ImagePattern | None = None) -> Iterator[tuple[Repository, Tag, TagRecord, Pulls]]:
        for repository, tag, record, pulls in cached.with_pulls(pattern):
            if repository.registry not in self._offline and self._syncer.may_pull(repository, tag):
                yield repository, tag, record, pulls

    async def _named(
        self, texts: Iterable[str], cached: Tags, kept: dict[str, list[str]], list_tags: ListTags, plan: Plan, now: float
    ) -> list[str]:
        """Plan the cached and configured images that match an operator's patterns; returns the patterns that match none."""
        patterns: dict[str, ImagePattern] = {}
        found: set[str] = set()
        for text in texts:
            try:
                pattern = ImagePattern.parse(text, self._default_registry)
            except InvalidInput as error:
                plan.refuse(text, error)
                continue
            patterns[text] = pattern
            selectors = (entry for entry in self._selectors if pattern.matches_repository(entry.repository))
            of_text = Plan()
            configured = await self._configured(selectors, kept, list_tags, of_text)
            of_text.targets = {name: target for name, target in configured.items() if _covers(pattern, target)}
            plan.include(of_text)
            if of_text.targets or of_text.problems:
                found.add(text)
        found |= await asyncio.to_thread(self._enqueue_matching, patterns, cached, plan, now)
        return [text for text in patterns if text not in found]

    def _enqueue_matching(self, patterns: dict[str, ImagePattern], cached: Tags, plan: Plan, now: float) -> set[str]:
        """Queue the planned images, and the cached tags that match a pattern; returns the texts of patterns that match any."""
        found: set[str] = set()
        earlier: list[ImagePattern] = []
        for text, pattern in patterns.items():
            for repository, tag, record, pulls in self._pullable(cached, pattern):
                found.add(text)
                is_queued = any(other.matches(repository, tag, record.digest) for other in earlier)
                if not is_queued and f"{repository}:{tag}" not in plan.targets:
                    plan.queue.add(repository, tag, _rank(pulls, now))
            earlier.append(pattern)
        _enqueue_targets(plan, cached, now)
        return found


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


def _text(selector: ImageSelector) -> str:
    """Return a text that is different for each selector."""
    choice = f" {selector.versions}" if selector.versions is not None else ""
    return f"{selector}{choice}" + (f" newest {selector.newest}" if selector.newest is not None else "")


def _covers(pattern: ImagePattern, target: Target) -> bool:
    if isinstance(target.reference, Tag):
        return pattern.matches(target.repository, target.reference, None)
    return pattern.matches(target.repository, None, target.reference)


def _enqueue_targets(plan: Plan, cached: Tags, now: float) -> None:
    """Queue the configured or named images of a plan."""
    for target in plan.targets.values():
        reference = target.reference
        pulls = cached.pulls(target.repository, reference) if isinstance(reference, Tag) else NONE
        plan.queue.add(target.repository, reference, _rank(pulls, now))


def _enqueue_as_named(plan: Plan) -> None:
    for number, target in enumerate(plan.targets.values()):
        plan.queue.add(target.repository, target.reference, number)


def _rank(pulls: Pulls, now: float) -> float:
    """Return a number that is the smaller, the more an image is pulled; above 0, and at most 1."""
    return 1 / (1 + pulls.at(now))
