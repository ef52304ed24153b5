"""The catalog: names of the cached repositories."""

from __future__ import annotations

import asyncio

from mirror.aio import SingleFlight
from mirror.cache.pull_policy import PullPolicy
from mirror.core.names import Repository
from mirror.storage.index import Index


class Catalog:
    """Lists the repositories with a known tag that may be pulled."""

    def __init__(self, index: Index, pull_policy: PullPolicy, default_registry: str) -> None:
        self._index = index
        self._pull_policy = pull_policy
        self._default_registry = default_registry
        self._lookups: SingleFlight[list[str]] = SingleFlight()

    async def repositories(self) -> list[str]:
        """The names that clients of this mirror use, sorted."""
        found, _ = await self._lookups.run("repositories", lambda: asyncio.to_thread(self._look_up))
        return found

    def _look_up(self) -> list[str]:
        found = (
            r for r, tag in self._index.tags.repositories() if self._pull_policy.may_list(r, tag) or self._may_list_another(r)
        )
        return sorted(r.path if r.registry == self._default_registry else str(r) for r in found)

    def _may_list_another(self, repository: Repository) -> bool:
        return any(self._pull_policy.may_list(repository, tag) for tag in self._index.tags.names(repository))
