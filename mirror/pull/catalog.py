"""What is cached, for the catalog."""

from __future__ import annotations

from mirror.core.names import Repository
from mirror.pull.permission import Permission
from mirror.storage.index import Index


class Catalog:
    """The repositories of which a tag is known that may be pulled."""

    def __init__(self, index: Index, permission: Permission, default_registry: str) -> None:
        self._index = index
        self._permission = permission
        self._default = default_registry

    def repositories(self) -> list[str]:
        """Names as clients of this mirror would write them, in order. Blocks for as long as the index has tags."""
        found: set[Repository] = set()
        for repository, tag, _ in self._index.tags():
            if repository not in found and self._permission.lists(repository, tag):
                found.add(repository)
        return sorted(r.path if r.registry == self._default else str(r) for r in found)
