"""What is cached, for the catalog."""

from __future__ import annotations

from mirror.storage.index import Index


class Catalog:
    """The repositories of which a tag is known."""

    def __init__(self, index: Index, default_registry: str) -> None:
        self._index = index
        self._default = default_registry

    def repositories(self) -> list[str]:
        """Names as clients of this mirror would write them, in order. Blocks for as long as the index has tags."""
        found = {repository for repository, _, _ in self._index.tags()}
        return sorted(r.path if r.registry == self._default else str(r) for r in found)
