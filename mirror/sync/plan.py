"""Which images an order means: configured ones, with their globs asked of upstream, and held ones by how much they are pulled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace

from mirror.core.errors import InvalidInput
from mirror.core.freshness import TagRecord
from mirror.core.image_selector import ImageSelector
from mirror.core.names import ImagePattern, Repository, Tag
from mirror.core.platform import Platform
from mirror.core.popularity import Pulls
from mirror.errors import MirrorError, UpstreamRateLimited
from mirror.sync.image_syncer import Target
from mirror.sync.job import Order

ListTags = Callable[[Repository], Awaitable[list[str]]]


@dataclass(frozen=True, slots=True)
class CachedTag:
    """A tag of which something is known here."""

    repository: Repository
    tag: Tag
    record: TagRecord
    pulls: Pulls


@dataclass
class Plan:
    """What is to be done.

    Attributes:
        targets: by name; what is asked for most comes first.
        problems: by what was asked for, why nothing is done about it.
        limited: whether upstream, or the budget, left something for the next run.
        kept: the tags that each configured image stands for now, by its text; they are evicted last.
    """

    targets: dict[str, Target] = field(default_factory=dict)
    problems: dict[str, str] = field(default_factory=dict)
    kept: dict[str, list[str]] = field(default_factory=dict)
    limited: bool = False

    def refuse(self, text: str, cause: Exception) -> None:
        """Nothing is done about what was asked for."""
        self.problems[text] = str(cause)
        self.limited = self.limited or isinstance(cause, UpstreamRateLimited)

    def include(self, other: Plan) -> None:
        """Plan what another plan has, too."""
        for target in other.targets.values():
            self.add(target)

    def add(self, target: Target) -> None:
        """Plan an image; one that is planned already is wanted for all platforms that were named."""
        known = self.targets.get(str(target), target)
        platforms = tuple(dict.fromkeys((*known.platforms, *target.platforms)))
        self.targets[str(target)] = replace(known, platforms=platforms, fetch=known.fetch or target.fetch)


class Planner:
    """Makes plans.

    Attributes:
        fingerprint: changes when other images are configured.

    Args:
        wanted: the configured images.
        platforms: for configured images that name none.
        active_within: seconds; a tag that nobody has pulled for longer is left alone.
        list_tags: asks upstream for all tags of a repository.
        may_pull: whether clients may; what they may not is left alone.
        default_registry: for names without one.
    """

    def __init__(
        self,
        wanted: tuple[ImageSelector, ...],
        platforms: tuple[Platform, ...],
        active_within: float,
        list_tags: ListTags,
        may_pull: Callable[[Repository, Tag], bool],
        default_registry: str,
    ) -> None:
        self._wanted = wanted
        self._platforms = platforms
        self._active_within = active_within
        self._list_tags = list_tags
        self._may_pull = may_pull
        self._default_registry = default_registry
        self.fingerprint = repr((wanted, platforms))

    @property
    def wants_images(self) -> bool:
        """Whether any are configured."""
        return bool(self._wanted)

    async def plan(
        self,
        order: Order,
        held: Iterable[CachedTag],
        kept: dict[str, list[str]],
        now: float,
        done: Callable[[Target], bool] = lambda _: False,
    ) -> Plan:
        """What an order means.

        Args:
            kept: what configured images stood for last; still so where upstream cannot be asked.
            done: whether a configured image needs no look in a round that is gone on with.
        """
        plan, ask = Plan(), _once(self._list_tags)
        if order.kind == "warm":
            for name in order.images:
                await self._warm(name, order.platforms, ask, plan)
            return plan
        # Of a hundred thousand tags each step takes a good part of a second: none is done where requests are answered.
        pulled = await asyncio.to_thread(self._to_look_at, held)
        if order.kind == "schedule" or not order.images:
            await self._configured(self._wanted, kept, ask, plan)
            plan.targets = {name: target for name, target in plan.targets.items() if not done(target)}
            active = (entry for entry in pulled.values() if now - entry.record.pulled <= self._active_within)
            due = (entry for entry in active if not order.asked <= entry.record.checked <= now)
            await asyncio.to_thread(_resync, due, plan)
        else:
            for text in order.images:
                await self._matching(text, pulled.values(), kept, ask, plan)
        plan.targets = await asyncio.to_thread(_most_pulled_first, plan.targets, pulled, now)
        return plan

    def _to_look_at(self, held: Iterable[CachedTag]) -> dict[tuple[Repository, Tag], CachedTag]:
        return {(entry.repository, entry.tag): entry for entry in held if self._may_pull(entry.repository, entry.tag)}

    async def _warm(self, name: str, platforms: tuple[str, ...], ask: ListTags, plan: Plan) -> None:
        try:
            named = tuple(map(Platform.parse, platforms)) or self._platforms
            wanted = ImageSelector.parse(name, default_registry=self._default_registry, platforms=named)
            targets = await _resolved(wanted, named, ask)
        except (InvalidInput, MirrorError) as error:
            plan.refuse(name, error)
            return
        for target in targets:
            plan.add(target)
        if not targets:
            plan.problems[name] = "upstream has no such tag"

    async def _configured(self, wanted: Iterable[ImageSelector], kept: dict[str, list[str]], ask: ListTags, plan: Plan) -> None:
        for entry in wanted:
            name = _text(entry)
            try:
                targets = await _resolved(entry, entry.platforms or self._platforms, ask)
            except MirrorError as error:
                plan.refuse(name, error)
                plan.kept[name] = kept.get(name, [])
                continue
            plan.kept[name] = [str(target) for target in targets]
            for target in targets:
                plan.add(target)

    async def _matching(
        self, text: str, held: Collection[CachedTag], kept: dict[str, list[str]], ask: ListTags, plan: Plan
    ) -> None:
        """What is held or configured of what an operator has named."""
        try:
            pattern = ImagePattern.parse(text, self._default_registry)
        except InvalidInput as error:
            plan.refuse(text, error)
            return
        meant = Plan()
        await asyncio.to_thread(_resync, _matching(pattern, held), meant)
        configured = Plan()
        await self._configured(
            (entry for entry in self._wanted if pattern.matches_repository(entry.repository)), kept, ask, configured
        )
        for target in configured.targets.values():
            if _covers(pattern, target):
                meant.add(target)
        plan.kept.update(configured.kept)
        plan.problems.update(configured.problems)
        plan.limited = plan.limited or configured.limited
        await asyncio.to_thread(plan.include, meant)
        if not meant.targets and not configured.problems:
            plan.problems[text] = "nothing of that name is held here, and nothing is configured; `warm` would bring it"


async def _resolved(wanted: ImageSelector, platforms: tuple[Platform, ...], ask: ListTags) -> list[Target]:
    repository = wanted.repository
    if wanted.reference is not None:
        return [Target(repository, wanted.reference, platforms, fetch=True)]
    # Of a hundred thousand tags, that takes a while.
    tags = await asyncio.to_thread(wanted.select, await ask(repository))
    return [Target(repository, tag, platforms, fetch=True) for tag in tags]


def _once(list_tags: ListTags) -> ListTags:
    """Asks for the tags of each repository once, whatever comes of it."""
    found: dict[Repository, list[str] | MirrorError] = {}

    async def ask(repository: Repository) -> list[str]:
        if repository not in found:
            try:
                found[repository] = await list_tags(repository)
            except MirrorError as error:
                found[repository] = error
        answer = found[repository]
        if isinstance(answer, MirrorError):
            raise answer
        return answer

    return ask


def _matching(pattern: ImagePattern, held: Iterable[CachedTag]) -> Iterator[CachedTag]:
    return (entry for entry in held if pattern.matches(entry.repository, entry.tag, entry.record.digest))


def _text(entry: ImageSelector) -> str:
    """An entry in words that no other one has."""
    choice = f" {entry.versions}" if entry.versions is not None else ""
    return f"{entry}{choice}" + (f" newest {entry.newest}" if entry.newest is not None else "")


def _resync(held: Iterable[CachedTag], plan: Plan) -> None:
    for entry in held:
        plan.add(Target(entry.repository, entry.tag))


def _covers(pattern: ImagePattern, target: Target) -> bool:
    if isinstance(target.reference, Tag):
        return pattern.matches(target.repository, target.reference, None)
    return pattern.matches(target.repository, None, target.reference)


def _most_pulled_first(
    targets: dict[str, Target], held: dict[tuple[Repository, Tag], CachedTag], now: float
) -> dict[str, Target]:
    return dict(sorted(targets.items(), key=lambda item: -_weight(held, item[1], now)))


def _weight(held: dict[tuple[Repository, Tag], CachedTag], target: Target, now: float) -> float:
    reference = target.reference
    entry = held.get((target.repository, reference)) if isinstance(reference, Tag) else None
    return entry.pulls.at(now) if entry is not None else 0.0
