"""What is cached, for the catalog."""

from __future__ import annotations

import asyncio

from mirror.aio import SingleFlight
from mirror.cache.pull_policy import PullPolicy
from mirror.core.names import Repository
from mirror.storage.index import Index


class Catalog:
    """The repositories of which a tag is known that may be pulled."""

    def __init__(self, index: Index, pull_policy: PullPolicy, default_registry: str) -> None:
        self._index = index
        self._pull_policy = pull_policy
        self._default = default_registry
        # However many ask, it is looked up once at a time.
        self._lookups: SingleFlight[list[str]] = SingleFlight()

    async def repositories(self) -> list[str]:
        """Names as clients of this mirror would write them, in order."""
        found, _ = await self._lookups.run("repositories", lambda: asyncio.to_thread(self._look_up))
        return found

    def _look_up(self) -> list[str]:
        found = (r for r, tag in self._index.repositories() if self._pull_policy.lists(r, tag) or self._lists_another(r))
        return sorted(r.path if r.registry == self._default else str(r) for r in found)

    def _lists_another(self, repository: Repository) -> bool:
        return any(self._pull_policy.lists(repository, tag) for tag in self._index.tag_names(repository))
