"""How far one image has come, for those who watch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mirror.core.digest import Digest
from mirror.core.manifest import Descriptor


class Progress:
    """The bytes of one image.

    Attributes:
        fetched: bytes that had to be fetched and are there.
        held: bytes that were there already.

    Args:
        received: bytes that have arrived of a blob that is under way.
    """

    def __init__(self, image: str, received: Callable[[Digest], int]) -> None:
        self.image = image
        self.fetched = 0
        self.held = 0
        self._received = received
        self._missing: dict[Digest, int] = {}

    def expect(self, descriptors: list[Descriptor]) -> None:
        """These are looked at next."""
        for descriptor in descriptors:
            self._missing[descriptor.digest] = descriptor.size

    def have(self, digest: Digest, size: int, fetched: int) -> None:
        """One is there; `fetched` bytes of it had to travel."""
        self._missing.pop(digest, None)
        if fetched:
            self.fetched += fetched
        else:
            self.held += size

    def snapshot(self) -> dict[str, Any]:
        """For the ledger."""
        under_way = sum(min(size, self._received(digest)) for digest, size in self._missing.items())
        done = self.fetched + self.held + under_way
        return {"image": self.image, "bytes": done, "size": max(done, self.fetched + self.held + sum(self._missing.values()))}
