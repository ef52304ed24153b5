"""Purge: removes images from the store, and keeps the content that other images need.

The index tells which manifests name a manifest or a blob, so the cost of a purge depends on the purged content alone. Blocks
until that is removed; belongs in a thread.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from mirror.core.digest import Digest
from mirror.core.freshness import TagRecord
from mirror.core.names import ImagePattern, Repository, Tag, is_glob
from mirror.core.signatures import signature_tags
from mirror.storage.blobs import BlobFiles
from mirror.storage.generation import Generation
from mirror.storage.images import Reach, reach, record_parts
from mirror.storage.index import Index, ReadCheck
from mirror.storage.rows import Kind
from mirror.storage.staging import PendingImage


@dataclass(frozen=True)
class PurgeRequest:
    """What to purge.

    Attributes:
        pulled_before: seconds since the epoch: only images that no client has pulled since; None for all.
        soft: keep the content, and revalidate each tag at its next pull.
        dry_run: change nothing.
        client: who asks for it.
    """

    pattern: ImagePattern
    pulled_before: float | None = None
    soft: bool = False
    dry_run: bool = False
    client: str = "an unknown client"


@dataclass(frozen=True)
class PurgeResult:
    """What was removed, or would be.

    Attributes:
        size: bytes of the files.
        images: the names of the removed tags, and of the removed manifests without a tag, sorted.
    """

    tags: int
    manifests: int
    blobs: int
    size: int
    images: tuple[str, ...] = ()


_Entry: TypeAlias = tuple[Repository, Tag, TagRecord]
_Row: TypeAlias = tuple[Repository, Digest]

# Real indexes nest two deep; a hostile one could nest endlessly.
_MAX_DEPTH = 4
_KINDS: tuple[Kind, ...] = ("manifest", "blob")


@dataclass(frozen=True)
class _Removal:
    """What is treated as removed while the rest is examined.

    Attributes:
        rows: records that repositories hold manifests.
        manifests: nothing needs these, so they need nothing.
    """

    tags: AbstractSet[tuple[Repository, Tag]] = frozenset()
    rows: AbstractSet[_Row] = frozenset()
    manifests: AbstractSet[Digest] = frozenset()


_NO_REMOVAL = _Removal()


class Purge:
    """Purges a store that other processes use at the same time."""

    def __init__(self, files: BlobFiles, index: Index, generation: Generation) -> None:
        self._files = files
        self._index = index
        self._generation = generation

    def carry_out(self, request: PurgeRequest) -> PurgeResult:
        """Purge, and return what was removed. It takes effect in every process at once; running pulls finish.

        Raises:
            StorageError: the index cannot be read, so it is unknown what other images need.
        """
        reliable, began = ReadCheck(self._index), time.time()
        self._index.label()
        before = float("inf") if request.pulled_before is None else request.pulled_before
        tags = [entry for entry in self._index.tags.matching(request.pattern) if entry[2].pulled < before]
        if request.soft:
            return self._expire(tags, dry_run=request.dry_run)
        record_parts(self._files, self._index)
        rows = self._removed_rows(request, tags)
        tags += self._signatures(rows, tags)
        rows = self._removed_rows(request, tags) | rows | self._referrers(rows, tags)
        removal = _Removal({(repository, tag) for repository, tag, _ in tags}, rows)
        lost = reach(self._files, {record.digest for *_, record in tags} | {digest for _, digest in rows})
        reliable.check()
        if request.dry_run:
            return replace(self._counted(len(tags), lost, removal), images=self._names(tags, rows))
        deleted, released = self._delete_names(request, tags, rows, began)
        images = self._names(deleted, released)
        names: list[tuple[Repository, Tag | Digest]] = [(repository, tag) for repository, tag, _ in deleted]
        self._index.history.note_purges([*names, *released], began, request.client)
        manifests = self._remove(lost.manifests, reliable)
        blobs = self._remove(lost.blobs - lost.manifests, reliable)
        self._generation.change()
        self._files.on_purged(lost.manifests | lost.blobs)
        return PurgeResult(len(deleted), len(manifests), len(blobs), sum(manifests) + sum(blobs), images)

    def withdraw(self, pending: PendingImage) -> int:
        """Remove the content of an interrupted import, except what a tag leads to or others need; returns the number of blobs.

        Raises:
            StorageError: the index cannot be read, so it is unknown what other images need.
        """
        reliable, repository = ReadCheck(self._index), pending.repository
        rows = [(repository, digest) for digest in pending.manifests]
        released = [row for row in rows if self._index.change(partial(self._release, *row, math.inf))]
        # A crash may have come before the rows.
        parts = {part for row in released for part in self._parts(*row)} | {("blob", repository, one) for one in pending.content}
        for part in parts:
            self._index.change(partial(self._index.release_part, *part))
        reliable.check()
        removed = self._remove(pending.content, reliable)
        self._generation.change()
        return len(removed)

    # ---- what is removed

    def _removed_rows(self, request: PurgeRequest, tags: Sequence[_Entry]) -> set[_Row]:
        """Return the manifests that their repositories lose: matched by the pattern, or reached from removed tags only."""
        removal = _Removal({(repository, tag) for repository, tag, _ in tags})
        candidates: set[_Row] = set()
        for repository, digests in _by_repository(tags).items():
            reached = reach(self._files, digests).manifests
            candidates |= {
                (repository, digest) for digest in reached if self._index.manifests.get(repository, digest) is not None
            }
        if request.pattern.tag is None:
            rows = self._index.manifests.rows(request.pattern.only_repository())
            candidates |= {row for row in rows if request.pattern.matches(row[0], None, row[1]) and self._is_old(request, row[1])}
        return {row for row in candidates if not self._is_tagged(*row, removal)}

    def _signatures(self, rows: Iterable[_Row], tags: Sequence[_Entry]) -> list[_Entry]:
        """Return the signature tags of removed manifests that are not among the removed tags yet."""
        known = {(repository, tag) for repository, tag, _ in tags}
        names = ((repository, tag) for repository, digest in rows for tag in signature_tags(digest))
        return [(*name, record) for name in names if name not in known and (record := self._index.tags.get(*name)) is not None]

    def _referrers(self, rows: Iterable[_Row], tags: Sequence[_Entry]) -> set[_Row]:
        """Return the referrers of removed manifests, except those that a tag leads to."""
        removal = _Removal({(repository, tag) for repository, tag, _ in tags})
        found = {(name, about) for name, digest in rows for about in self._index.attachments.referrers(name, digest)}
        return {row for row in found if self._index.manifests.get(*row) is not None and not self._is_tagged(*row, removal)}

    def _is_old(self, request: PurgeRequest, digest: Digest) -> bool:
        return request.pulled_before is None or (self._files.used(digest) or 0.0) < request.pulled_before

    def _names(self, tags: Sequence[_Entry], rows: Iterable[_Row]) -> tuple[str, ...]:
        """Return the names of removed tags, and of removed manifests that are no part of those."""
        names = {f"{repository}:{tag}" for repository, tag, _ in tags}
        parts = {name: reach(self._files, digests).manifests for name, digests in _by_repository(tags).items()}
        names |= {f"{repository}@{digest}" for repository, digest in rows if digest not in parts.get(repository, ())}
        return tuple(sorted(names))

    def _counted(self, tags: int, lost: Reach, removal: _Removal) -> PurgeResult:
        """Return what would be removed."""
        manifests = {digest for digest in lost.manifests if not self._is_needed(digest, removal)}
        removal = replace(removal, manifests=manifests)
        blobs = {digest for digest in lost.blobs - lost.manifests if not self._is_needed(digest, removal)}
        sizes = [[size for digest in group if (size := self._files.size(digest))] for group in (manifests, blobs)]
        return PurgeResult(tags, len(sizes[0]), len(sizes[1]), sum(map(sum, sizes)))

    def _expire(self, tags: Sequence[_Entry], *, dry_run: bool) -> PurgeResult:
        if not dry_run:
            now = time.time()
            for repository, tag, _ in tags:
                self._index.tags.expire(repository, tag, now)
            self._generation.change()
        return PurgeResult(len(tags), 0, 0, 0, self._names(tags, ()))

    # ---- what is needed

    def _is_tagged(self, repository: Repository, digest: Digest, removal: _Removal, depth: int = 0) -> bool:
        """Whether a tag of the repository names a manifest or an index that contains it."""
        if any((repository, tag) not in removal.tags for tag in self._index.tags.naming(repository, digest)):
            return True
        parents = self._index.parts.naming("manifest", repository, digest) if depth < _MAX_DEPTH else ()
        return any(self._is_tagged(repository, parent, removal, depth + 1) for parent in parents)

    def _is_needed(self, digest: Digest, removal: _Removal, depth: int = 0) -> bool:
        """Whether a tag names a digest, a repository holds it as a manifest, or a needed manifest names it."""
        if any(name not in removal.tags for name in self._index.tags.naming_anywhere(digest)):
            return True
        if any((repository, digest) not in removal.rows for repository in self._index.manifests.holders(digest)):
            return True
        if depth == _MAX_DEPTH:
            return False
        seen = set(removal.manifests)
        for kind in _KINDS:
            for _, parent in self._index.parts.naming_anywhere(kind, digest):
                if parent not in seen and self._is_needed(parent, removal, depth + 1):
                    return True
                seen.add(parent)
        return False

    # ---- removing it

    def _delete_names(
        self, request: PurgeRequest, tags: Sequence[_Entry], rows: Iterable[_Row], began: float
    ) -> tuple[list[_Entry], list[_Row]]:
        """Delete names before files, so that requests ask upstream instead of opening a file that is about to be removed.

        Returns the names that have not changed meanwhile, which are deleted.
        """
        deleted = [entry for entry in tags if self._index.tags.delete_unchanged(*entry)]
        for name in {(repository, tag) for repository, tag, _ in deleted} | _named(request):
            self._index.tags.on_news(*name)
        released = [row for row in rows if self._index.change(partial(self._release, *row, began))]
        for part in {part for row in released for part in self._parts(*row)}:
            self._index.change(partial(self._index.release_part, *part))
        for row in rows:
            self._index.attachments.delete(*row)
        self._index.negative.delete_matching(request.pattern)
        self._generation.change()
        return deleted, released

    def _release(self, repository: Repository, digest: Digest, began: float) -> bool:
        """Delete the record that a repository holds a manifest, unless it or a tag that leads to it has arrived again."""
        if self._index.manifests.is_newer(repository, digest, began) or self._is_tagged(repository, digest, _NO_REMOVAL):
            return False
        self._index.manifests.delete(repository, digest)
        return True

    def _parts(self, repository: Repository, manifest: Digest) -> Iterator[tuple[Kind, Repository, Digest]]:
        """Yield a manifest and what it names."""
        yield "manifest", repository, manifest
        for part in self._index.parts.of(repository, manifest) or ():
            yield part.kind, repository, part.digest

    def _remove(self, digests: Iterable[Digest], reliable: ReadCheck) -> list[int]:
        """Remove content that nothing needs; returns the bytes of each removed file."""
        sizes = (self._index.change(partial(self._remove_one, digest, reliable)) for digest in digests)
        return [size for size in sizes if size]

    def _remove_one(self, digest: Digest, reliable: ReadCheck) -> int:
        # No process can record a need now: an image that arrives is recorded before this, or finds the file removed.
        needed = self._is_needed(digest, _NO_REMOVAL)
        reliable.check()
        if needed:
            return 0
        self._index.parts.delete_everywhere(digest)
        return self._files.delete(digest)


def _named(request: PurgeRequest) -> set[tuple[Repository, Tag]]:
    """Return the tag that a request names without a glob, whether it is cached or not."""
    repository, tag = request.pattern.only_repository(), request.pattern.tag
    if repository is None or tag is None or is_glob(tag) or request.pulled_before is not None:
        return set()
    return {(repository, Tag.parse(tag))}


def _by_repository(entries: Iterable[_Entry]) -> dict[Repository, set[Digest]]:
    found: dict[Repository, set[Digest]] = {}
    for repository, _, record in entries:
        found.setdefault(repository, set()).add(record.digest)
    return found
