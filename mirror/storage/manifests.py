"""Manifests: which repository holds which manifest, and with which media type.

manifest|REPOSITORY|DIGEST    media type and size, labelled with the digest
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.storage.rows import MALFORMED, parse_key
from mirror.storage.table import Table


@dataclass(frozen=True, slots=True)
class ManifestRecord:
    """A manifest that a repository holds.

    Attributes:
        size: bytes.
    """

    media_type: str
    size: int


class Manifests:
    """The table of manifests. Reads cost microseconds; writes and walks belong in a thread."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def label(self) -> None:
        """Label the rows that earlier versions have written."""
        self._table.label("manifest|", "substr(key, 10 + instr(substr(key, 10), '|'))")

    def is_empty(self) -> bool:
        """Whether no manifest is recorded."""
        return not self._table.keys_from("manifest|", 1)

    def get(self, repository: Repository, digest: Digest) -> ManifestRecord | None:
        """Return what a repository holds as a manifest, or None."""
        value = self._table.get(f"manifest|{repository}|{digest}")
        try:
            return None if value is None else ManifestRecord(str(value["media_type"]), int(value["size"]))
        except MALFORMED:
            return None

    def put(self, repository: Repository, digest: Digest, manifest: ManifestRecord) -> None:
        """Record that a repository holds a manifest."""
        self._table.set(f"manifest|{repository}|{digest}", asdict(manifest), label=str(digest))

    def delete(self, repository: Repository, digest: Digest) -> None:
        """Delete the record that a repository holds a manifest; what the manifest names stays recorded."""
        self._table.delete(f"manifest|{repository}|{digest}")

    def written_at(self, repository: Repository, digest: Digest) -> float | None:
        """Return when a record was written, perhaps not for the first time, in seconds since the epoch; None without one."""
        return self._table.written_at(f"manifest|{repository}|{digest}")

    def is_newer(self, repository: Repository, digest: Digest, when: float) -> bool:
        """Whether the record was written, perhaps not for the first time, since `when`, in seconds since the epoch."""
        return (self.written_at(repository, digest) or 0.0) >= when

    def rows(self, repository: Repository | None = None) -> Iterator[tuple[Repository, Digest]]:
        """Yield every manifest that any repository holds, or that one repository holds."""
        prefix = "manifest|" if repository is None else f"manifest|{repository}|"
        for name in map(parse_key, self._table.keys(prefix)):
            if name is not None and isinstance(name[1], Digest):
                yield name[0], name[1]

    def holders(self, digest: Digest) -> list[Repository]:
        """Return the repositories that hold a manifest."""
        return [name[0] for name in map(parse_key, self._table.labelled(str(digest))) if name is not None]
