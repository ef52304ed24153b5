"""Verdicts: what rules of `trust` have said of the signatures of manifests.

verdict|REPOSITORY|DIGEST|RULE    the result, its reason, and when it was reached

They are rows of the attachments, and go with them: when the manifest is purged, or is not held any more.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.storage.rows import MALFORMED
from mirror.storage.table import Table


@dataclass(frozen=True, slots=True)
class StoredVerdict:
    """A verdict as it was reached.

    Attributes:
        result: one of the results of `mirror.trust.verdict`.
        why: the reason, in words.
        reached: seconds since the epoch.
    """

    result: str
    why: str
    reached: float


class Verdicts:
    """The rows of verdicts. Reads cost microseconds; writes belong in a thread."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def get(self, repository: Repository, digest: Digest, rule: str) -> StoredVerdict | None:
        """Return the last verdict of a rule about a manifest of a repository, or None.

        Args:
            rule: its fingerprint.
        """
        value = self._table.get(f"verdict|{repository}|{digest}|{rule}")
        try:
            return StoredVerdict(str(value["result"]), str(value["why"]), float(value["reached"]))
        except MALFORMED:
            return None

    def put(self, repository: Repository, digest: Digest, rule: str, verdict: StoredVerdict) -> None:
        """Record the verdict of a rule."""
        self._table.set(f"verdict|{repository}|{digest}|{rule}", asdict(verdict))

    def delete_refusals(self, repository: Repository, digest: Digest, good: str) -> None:
        """Delete the verdicts about a manifest of a repository whose result is not `good`."""
        rows = self._table.items_from(f"verdict|{repository}|{digest}|")
        self._table.delete_many([key for key, value in rows if not isinstance(value, dict) or value.get("result") != good])
