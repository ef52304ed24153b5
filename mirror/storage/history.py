"""What has become of cached content: evictions, purges, moves of tags, and misses, so that a miss can be explained later.

evicted|DIGEST                   when a manifest was evicted, and for which bound
purged|REPOSITORY|REFERENCE      when a tag or manifest was purged, and by which client
moved|REPOSITORY|TAG             when a tag moved, from which digest to which
missed|REPOSITORY|REFERENCE      when an image was last fetched for a client, and why

The rows lie in the index, so all workers share them and they survive a restart, when people ask most. Each has one row at most,
which expires after 30 days: there are no more than tags and manifests that were held within that time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from mirror.core.digest import Digest
from mirror.core.names import Reference, Repository, Tag
from mirror.storage.rows import MALFORMED
from mirror.storage.table import Table

_TTL_S: Final = 30 * 86400.0
MAX_ROWS: Final = 10_000
"""Of one purge or eviction: a purge of everything must not write for minutes."""


@dataclass(frozen=True, slots=True)
class Miss:
    """Why an image was fetched for a client.

    Attributes:
        when: seconds since the epoch.
        cause: `new`, `moved`, `evicted`, `purged`, or `lost` if the cause is not known.
        text: for people.
        since: when the cause came about, in seconds since the epoch; None if that is not known.
    """

    when: float
    cause: str
    text: str
    since: float | None = None


class History:
    """The table of history. Reads cost microseconds; writes belong in a thread."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def note_evictions(self, digests: Iterable[Digest], when: float, bound: str) -> None:
        """Record that manifests were evicted."""
        self._put((f"evicted|{digest}", {"when": when, "bound": bound}) for digest in digests)

    def note_purges(self, names: Iterable[tuple[Repository, Reference]], when: float, client: str) -> None:
        """Record that tags and manifests were purged."""
        self._put((f"purged|{repository}|{reference}", {"when": when, "client": client}) for repository, reference in names)

    def note_move(self, repository: Repository, tag: Tag, old: Digest, new: Digest, when: float) -> None:
        """Record that a tag has moved."""
        self._put([(f"moved|{repository}|{tag}", {"when": when, "old": str(old), "new": str(new)})])

    def note_miss(self, repository: Repository, reference: Reference, miss: Miss) -> None:
        """Record why an image was fetched for a client."""
        self._put([(f"missed|{repository}|{reference}", asdict(miss))])

    def miss(self, repository: Repository, reference: Reference) -> Miss | None:
        """Return the last recorded miss of an image, or None."""
        row = self._table.get(f"missed|{repository}|{reference}")
        try:
            since = None if row["since"] is None else float(row["since"])
            return Miss(float(row["when"]), str(row["cause"]), str(row["text"]), since)
        except MALFORMED:
            return None

    def cause(self, repository: Repository, reference: Reference, digest: Digest, asked: float, *, is_known: bool) -> Miss:
        """Return why an image has just been fetched for a request that began at `asked`.

        Args:
            is_known: its tag was recorded with this digest before, or its digest was named by the client.
        """
        moved = None if is_known else self._row(f"moved|{repository}|{reference}")
        if moved is not None and moved.get("new") == str(digest) and moved["when"] >= asked:
            return Miss(asked, "moved", f"the tag had moved upstream; it named {moved.get('old')}", moved["when"])
        purged = self._row(f"purged|{repository}|{reference}") or self._row(f"purged|{repository}|{digest}")
        evicted = self._row(f"evicted|{digest}")
        if purged is not None and (evicted is None or evicted["when"] < purged["when"]):
            return Miss(asked, "purged", f"it had been purged by {purged.get('client')}", purged["when"])
        if evicted is not None:
            return Miss(asked, "evicted", f"it had been evicted to keep {evicted.get('bound')}", evicted["when"])
        if is_known and isinstance(reference, Tag):
            return Miss(asked, "lost", "its content was gone, for a reason that is not recorded")
        return Miss(asked, "new", "it had not been held here, at least not within 30 days")

    def _row(self, key: str) -> dict[str, Any] | None:
        row = self._table.get(key)
        return row if isinstance(row, dict) and isinstance(row.get("when"), float) and math.isfinite(row["when"]) else None

    def _put(self, rows: Iterable[tuple[str, dict[str, Any]]]) -> None:
        self._table.set_many(((key, row, None) for (key, row), _ in zip(rows, range(MAX_ROWS), strict=False)), _TTL_S)
