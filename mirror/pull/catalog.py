"""What is cached, for the catalog."""

from __future__ import annotations

import asyncio

from mirror.aio import SingleFlight
from mirror.core.names import Repository
from mirror.pull.permission import Permission
from mirror.storage.index import Index


class Catalog:
    """The repositories of which a tag is known that may be pulled."""

    def __init__(self, index: Index, permission: Permission, default_registry: str) -> None:
        self._index = index
        self._permission = permission
        self._default = default_registry
        # A walk over all tags takes long: however many ask, there is one at a time.
        self._walks: SingleFlight[list[str]] = SingleFlight()

    async def repositories(self) -> list[str]:
        """Names as clients of this mirror would write them, in order."""
        found, _ = await self._walks.run("repositories", lambda: asyncio.to_thread(self._walk))
        return found

    def _walk(self) -> list[str]:
        found: set[Repository] = set()
        for repository, tag, _ in self._index.tags():
            if repository not in found and self._permission.lists(repository, tag):
                found.add(repository)
        return sorted(r.path if r.registry == self._default else str(r) for r in found)
