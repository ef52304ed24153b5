"""The images of a job in the order of their sync. A store may have hundreds of thousands of tags, so each takes few bytes."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator

from mirror.core.names import Reference, Repository
from mirror.storage.rows import parse_key

# Packed like this, ranks that are not negative compare as bytes.
_RANK = struct.Struct(">d")


class ImageQueue:
    """Images by registry. Add all of them, then `sort`, then take them out.

    A list of objects for a hundred thousand tags would take a hundred megabytes, and each pass of the garbage collector over
    it a second.
    """

    def __init__(self) -> None:
        self._added: dict[str, list[bytes]] = {}
        # The sorted keys of the images of a registry, one a line.
        self._sorted: dict[str, bytes] = {}
        self._count = 0

    def __len__(self) -> int:
        """The number of images that were added."""
        return self._count

    def add(self, repository: Repository, reference: Reference, rank: float) -> None:
        """Add an image that is not in the queue yet.

        Args:
            rank: 0 or more; the smallest comes first. Images of one rank come in the order of their names.
        """
        key = f"manifest|{repository}|{reference}".encode()
        self._added.setdefault(repository.registry, []).append(_RANK.pack(rank) + key)
        self._count += 1

    def sort(self) -> None:
        """Order the images; takes a moment for each hundred thousand. No image can be added after it."""
        while self._added:
            registry, records = self._added.popitem()
            records.sort()
            self._sorted[registry] = b"\n".join(record[_RANK.size :] for record in records)

    def take(self) -> dict[str, Iterator[tuple[Repository, Reference]]]:
        """Return the images of each registry, in order."""
        return {registry: _images(keys) for registry, keys in self._sorted.items()}


def _images(keys: bytes) -> Iterator[tuple[Repository, Reference]]:
    for key in io.BytesIO(keys):
        image = parse_key(key.decode().removesuffix("\n"))
        if image is not None:
            yield image
