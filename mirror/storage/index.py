"""The index: facts about tags, rights and content, in one table for each purpose.

It may be lost without harm: what it does not know is asked of upstream again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from mirror.core.digest import Digest
from mirror.core.names import Repository, Tag
from mirror.errors import StorageError
from mirror.storage.attachments import Attachments
from mirror.storage.grants import Grants, NegativeAnswers
from mirror.storage.history import History
from mirror.storage.holds import Holds
from mirror.storage.manifests import ManifestRecord, Manifests
from mirror.storage.parts import Parts
from mirror.storage.rows import Kind, delete_if, paused
from mirror.storage.table import Table
from mirror.storage.tags import Tags
from mirror.storage.verdicts import Verdicts

T = TypeVar("T")

# Indexes nest two deep in practice; a layer that very many images share needs only one of them.
_MAX_DEPTH = 4
_MAX_PARENTS = 20


class Index:
    """The tables of a store. Reads cost microseconds; writes and walks belong in a thread.

    Attributes:
        tags: which digests tags name.
        holds: which moves of tags are held back.
        manifests: which repository holds which manifest.
        grants: what upstream gave to which repository.
        negative: what upstream does not have.
        parts: what manifests name.
        attachments: signatures and other referrers of manifests.
        verdicts: what rules of `trust` have said of manifests.
        history: what has become of cached content.
        tables: the databases, by name.
    """

    def __init__(self, directory: str) -> None:
        names = ("tags", "manifests", "grants", "absent", "parts", "attachments", "history")
        self.tables = {name: Table(f"{directory}/{name}") for name in names}
        self.tags = Tags(self.tables["tags"])
        self.holds = Holds(self.tables["tags"])
        self.manifests = Manifests(self.tables["manifests"])
        self.grants = Grants(self.tables["grants"])
        self.negative = NegativeAnswers(self.tables["absent"])
        self.parts = Parts(self.tables["parts"])
        self.attachments = Attachments(self.tables["attachments"])
        self.verdicts = Verdicts(self.tables["attachments"])
        self.history = History(self.tables["history"])
        self.label()
        if not self.parts.is_complete and self.manifests.is_empty() and self.tags.is_empty():
            self.parts.complete()

    def label(self) -> None:
        """Label the rows that earlier versions have written, so that a digest finds them; costs nothing once that is done."""
        self.tags.label()
        self.manifests.label()
        self.parts.label()

    def close(self) -> None:
        """Close the databases."""
        for table in self.tables.values():
            table.close()

    @property
    def failures(self) -> int:
        """How many reads and writes have failed; while it stays the same, what was not found is not there."""
        return sum(table.failures for table in self.tables.values())

    def change(self, work: Callable[[], T]) -> T | None:
        """Run `work` while no process records what a tag names or what a repository holds; None if a table is unavailable.

        It must not take long: other processes wait for it, and give up.
        """
        tags, manifests, parts = (self.tables[name] for name in ("tags", "manifests", "parts"))
        return tags.change(lambda: manifests.change(lambda: parts.change(work)))

    def delete_manifest(self, repository: Repository, digest: Digest) -> None:
        """Delete the record that a repository holds a manifest, and what the manifest names."""
        self.parts.delete(repository, digest)
        self.manifests.delete(repository, digest)

    def has_manifest(self, repository: Repository, digest: Digest) -> bool:
        """Whether a repository holds a manifest, or one of its tags names it."""
        return self.manifests.get(repository, digest) is not None or bool(self.tags.naming(repository, digest))

    def tag_that_needs(self, repository: Repository, kind: Kind, digest: Digest, depth: int = 0) -> Tag | None:
        """Return a tag of a repository whose image has a manifest or blob; None if none is known."""
        tags = self.tags.naming(repository, digest) if kind == "manifest" else []
        if tags or depth > _MAX_DEPTH:
            return tags[0] if tags else None
        parents = self.parts.naming(kind, repository, digest)[:_MAX_PARENTS]
        found = (self.tag_that_needs(repository, "manifest", parent, depth + 1) for parent in parents)
        return next((tag for tag in found if tag is not None), None)

    def size_named(self, kind: Kind, repository: Repository, part: Digest) -> int | None:
        """Return the bytes that a manifest of a repository states for a part; None if none that the repository has names it.

        The parts of a manifest that was purged there stay recorded as long as another repository needs it, and grant nothing.
        """
        sizes = self.parts.sizes_named(kind, repository, part)
        return next((size for manifest, size in sizes if self.has_manifest(repository, manifest)), None)

    def release_part(self, kind: Kind, repository: Repository, digest: Digest) -> None:
        """Delete the grant of a digest to a repository unless the repository has it as a manifest or a part of one."""
        is_held = kind == "manifest" and self.has_manifest(repository, digest)
        if not is_held and self.size_named(kind, repository, digest) is None:
            self.grants.delete(kind, str(repository), digest)

    def revoke(self, kind: Kind, repository: Repository, digest: Digest) -> None:
        """Revoke the grant of a digest to a repository, and delete the record that the repository holds it."""
        self.grants.revoke(kind, str(repository), digest)
        if kind == "manifest":
            # After the grant: see `record_held`.
            self.manifests.delete(repository, digest)

    def record_held(self, repository: Repository, digest: Digest, manifest: ManifestRecord) -> None:
        """Record that a repository holds a manifest, unless the grant has been revoked."""

        def work() -> None:
            if not self.grants.is_revoked("manifest", str(repository), digest):
                self.manifests.put(repository, digest, manifest)

        # A revocation that comes after the look deletes the record after this transaction.
        self.tables["manifests"].change(work)

    def drop_manifests(self, is_present: Callable[[Digest], bool], pause: Callable[[], bool] = lambda: False) -> int:
        """Delete the records of manifests that are gone; returns how many. The next pull records them again.

        Args:
            pause: called after every few hundred rows; True ends the pass.
        """

        def is_gone(digest: Digest) -> bool:
            return not is_present(digest)

        return sum(
            delete_if(self.change, partial(is_gone, digest), partial(self.delete_manifest, repository, digest))
            for repository, digest in paused(self.manifests.rows(), pause)
        )


class ReadCheck:
    """Tells a row that is not there from a row that could not be read, for decisions that follow from an absent row."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._failures = index.failures

    def check(self, unknown: str = "what is needed") -> None:
        """Raise StorageError, which says what is unknown, if a read has failed since this was made."""
        if self._index.failures != self._failures:
            raise StorageError(f"the index cannot be read: nobody knows {unknown}", "io")
