"""What is in the store and not yet in the bucket. The processes of a store share it, and it survives all of them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable

from mirror.core.digest import Digest
from mirror.core.names import Repository, Tag
from mirror.storage.rows import parse_digest, parse_key
from mirror.storage.table import Table

# The row of a blob is older than its file, and that of a manifest than the facts about it.
_MIN_AGE_S = 1.0


class OwedUploads:
    """Rows of digests and tags with the time at which they were owed. Every method belongs in a thread.

    blob|DIGEST             a blob or a manifest
    tag|REPOSITORY|TAG      the record of a tag
    """

    def __init__(self, directory: str) -> None:
        self._table = Table(f"{directory}/objects")

    def add_blob(self, digest: Digest) -> None:
        """Owe a blob or manifest, before its file is in the store: a crash between leaves a row too much, never one too few."""
        self._table.set(f"blob|{digest}", time.time())

    def add_tag(self, repository: Repository, tag: Tag) -> None:
        """Owe the record of a tag."""
        self._table.set(f"tag|{repository}|{tag}", time.time())

    def due(self, most: int, is_skipped: Callable[[str], bool]) -> list[str]:
        """Return at most so many rows that are to be uploaded now."""
        latest = time.time() - _MIN_AGE_S
        rows: Iterable[str] = (key for key in self._table.keys("") if not is_skipped(key))
        return list(itertools.islice((key for key in rows if self._is_before(key, latest)), most))

    def is_older(self, key: str, seconds: float) -> bool:
        """Whether a row was written so long ago."""
        return self._is_before(key, time.time() - seconds)

    def delete(self, key: str) -> None:
        """Delete a row: it is uploaded, or will never be."""
        self._table.delete(key)

    def count(self) -> int:
        """Return how many rows there are."""
        return sum(1 for _ in self._table.keys(""))

    def close(self) -> None:
        """Close the database."""
        self._table.close()

    def _is_before(self, key: str, when: float) -> bool:
        written = self._table.get(key)
        # A time in the future was written before the clock was set back.
        return not isinstance(written, float) or written <= when or written > time.time()


def blob_of(key: str) -> Digest | None:
    """Return the digest of a row; None if it is no row of a blob."""
    return parse_digest(key.removeprefix("blob|")) if key.startswith("blob|") else None


def tag_of(key: str) -> tuple[Repository, Tag] | None:
    """Return the tag of a row; None if it is no row of a tag."""
    name = parse_key(key) if key.startswith("tag|") else None
    return None if name is None or not isinstance(name[1], Tag) else (name[0], name[1])
