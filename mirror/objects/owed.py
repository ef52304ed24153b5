"""What is to be written to the bucket, or deleted from it. The processes of a store share it, and it survives all of them."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from typing import Literal

from mirror.core.digest import Digest
from mirror.core.names import Repository, Tag
from mirror.storage.rows import parse_digest, parse_key
from mirror.storage.table import Table

# The row of a blob is older than its file, and that of a manifest than the facts about it.
_MIN_AGE_S = 1.0

OwedKind = Literal["blob", "tag"]


class OwedUploads:
    """Rows of digests and tags with the time at which they were owed. Every method belongs in a thread.

    blob|DIGEST             a blob or a manifest
    tag|REPOSITORY|TAG      the record of a tag
    purged|DIGEST           what was purged here, and is to be deleted there
    """

    def __init__(self, directory: str) -> None:
        self._table = Table(f"{directory}/objects")

    def add_blob(self, digest: Digest, wait_s: float = 0.0) -> None:
        """Owe a blob or manifest, before its file is in the store: a crash between leaves a row too much, never one too few.

        Args:
            wait_s: how long to leave the upload to somebody else.
        """
        self._table.set(f"blob|{digest}", [time.time(), wait_s])

    def add_tag(self, repository: Repository, tag: Tag) -> None:
        """Owe the record of a tag."""
        self._table.set(f"tag|{repository}|{tag}", time.time())

    def due(self, kind: OwedKind, most: int, is_skipped: Callable[[str], bool]) -> list[str]:
        """Return at most so many rows of a kind that are to be uploaded now."""
        latest = time.time() - _MIN_AGE_S
        rows: Iterable[str] = (key for key in self._table.keys(f"{kind}|") if not is_skipped(key))
        return list(itertools.islice((key for key in rows if self._is_before(key, latest, is_due=True)), most))

    def is_older(self, key: str, seconds: float) -> bool:
        """Whether a row was written so long ago."""
        return self._is_before(key, time.time() - seconds)

    def delete(self, key: str) -> None:
        """Delete a row: it is uploaded, or will never be."""
        self._table.delete(key)

    def count(self) -> int:
        """Return how many uploads there are."""
        return sum(1 for _ in itertools.chain(self._table.keys("blob|"), self._table.keys("tag|")))

    def add_purged(self, digests: Iterable[Digest]) -> None:
        """Owe the deletion of what was purged now."""
        self._table.set_many([(f"purged|{digest}", time.time(), None) for digest in digests])

    def purged(self, before: float, most: int) -> list[tuple[Digest, float]]:
        """Return at most so many digests that were purged before a time, each with the time of its purge."""
        rows = ((parse_digest(key.removeprefix("purged|")), when) for key, when in self._table.items("purged|"))
        found = ((digest, when) for digest, when in rows if digest is not None and isinstance(when, float) and when < before)
        return list(itertools.islice(found, most))

    def delete_purged(self, digests: Iterable[Digest]) -> None:
        """Delete the rows of what was purged."""
        self._table.delete_many([f"purged|{digest}" for digest in digests])

    def close(self) -> None:
        """Close the database."""
        self._table.close()

    def _is_before(self, key: str, when: float, *, is_due: bool = False) -> bool:
        written = self._table.get(key)
        wait_s = 0.0
        if isinstance(written, list) and len(written) == len(("written", "wait_s")):
            written, wait_s = written
        if not isinstance(written, float) or not isinstance(wait_s, float):
            return True
        # A time in the future was written before the clock was set back.
        return written > time.time() or written + (wait_s if is_due else 0.0) <= when


def blob_of(key: str) -> Digest | None:
    """Return the digest of a row; None if it is no row of a blob."""
    return parse_digest(key.removeprefix("blob|")) if key.startswith("blob|") else None


def tag_of(key: str) -> tuple[Repository, Tag] | None:
    """Return the tag of a row; None if it is no row of a tag."""
    name = parse_key(key) if key.startswith("tag|") else None
    return None if name is None or not isinstance(name[1], Tag) else (name[0], name[1])
