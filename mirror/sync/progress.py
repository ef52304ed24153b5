"""The progress of one image's sync."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from mirror.core.digest import Digest
from mirror.core.manifest import Descriptor


class Progress:
    """Counts the bytes of one image.

    Attributes:
        fetched: bytes that were fetched from upstream.
        held: bytes that were in the store already.
        fetching: the blobs that are being fetched; those of an interrupted sync stay here.

    Args:
        received: returns the bytes that have arrived of a blob that is being downloaded.
    """

    def __init__(self, image: str, received: Callable[[Digest], int]) -> None:
        self.image = image
        self.fetched = 0
        self.held = 0
        self.fetching: set[Digest] = set()
        self._received = received
        self._missing: dict[Digest, int] = {}

    def expect(self, descriptors: list[Descriptor]) -> None:
        """Count these blobs as part of the image."""
        for descriptor in descriptors:
            self._missing[descriptor.digest] = descriptor.size

    @contextlib.contextmanager
    def fetch(self, digest: Digest) -> Iterator[None]:
        """Count a blob among those that are being fetched, until the block ends without an error."""
        self.fetching.add(digest)
        yield
        self.fetching.discard(digest)

    def have(self, digest: Digest, size: int, fetched: int) -> None:
        """Count a blob or manifest as stored; `fetched` bytes of it came from upstream."""
        self._missing.pop(digest, None)
        if fetched:
            self.fetched += fetched
        else:
            self.held += size

    def snapshot(self) -> dict[str, Any]:
        """Return its row in the job store."""
        under_way = sum(min(size, self._received(digest)) for digest, size in self._missing.items())
        done = self.fetched + self.held + under_way
        return {"image": self.image, "bytes": done, "size": max(done, self.fetched + self.held + sum(self._missing.values()))}
