"""The repositories of the store: listed, and searched by name."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from mirror.aio import SingleFlight
from mirror.cache.pull_policy import PullPolicy
from mirror.core.names import Repository
from mirror.core.search import distance, search_text
from mirror.storage.index import Index


@dataclass(frozen=True, slots=True)
class Found:
    """A repository that a search has found.

    Attributes:
        name: as clients of this mirror name it.
        tags: number of its tags that are known here and may be pulled.
    """

    name: str
    tags: int


class Catalog:
    """Lists the repositories with a known tag that may be pulled."""

    def __init__(self, index: Index, pull_policy: PullPolicy, default_registry: str) -> None:
        self._index = index
        self._pull_policy = pull_policy
        self._default_registry = default_registry
        self._lookups: SingleFlight[dict[str, Repository]] = SingleFlight()

    async def repositories(self) -> list[str]:
        """The names that clients of this mirror use, sorted."""
        return sorted(await self._by_name())

    async def search(self, term: str, number: int, size: int) -> tuple[list[Found], int]:
        """Search the names for a text, in any case; empty finds all.

        The best matches come first: the text itself, then names that begin with it, then the others.

        Args:
            number: of the page, from 1.
            size: of a page.

        Returns:
            The repositories of the page, and the number of all that were found.
        """
        return await asyncio.to_thread(self._search, await self._by_name(), term, number, size)

    def _search(self, by_name: dict[str, Repository], term: str, number: int, size: int) -> tuple[list[Found], int]:
        text = search_text(term)
        names = sorted((name for name in by_name if text in name.lower()), key=lambda name: (distance(name, text), name))
        chosen = names[(number - 1) * size : number * size]
        return [Found(name, self._count_tags(by_name[name])) for name in chosen], len(names)

    async def _by_name(self) -> dict[str, Repository]:
        found, _ = await self._lookups.run("repositories", lambda: asyncio.to_thread(self._look_up))
        return found

    def _look_up(self) -> dict[str, Repository]:
        return {r.path if r.registry == self._default_registry else str(r): r for r in self._pullable()}

    def _pullable(self) -> Iterator[Repository]:
        for repository, tag in self._index.tags.repositories():
            if self._pull_policy.may_list(repository, tag) or any(self._listed(repository)):
                yield repository

    def _count_tags(self, repository: Repository) -> int:
        return sum(self._listed(repository))

    def _listed(self, repository: Repository) -> Iterator[bool]:
        """Whether each known tag may be pulled."""
        return (self._pull_policy.may_list(repository, tag) for tag in self._index.tags.names(repository))
