"""Purge: take images out of the store, without touching what other images need.

What still needs a manifest or a blob is looked up in the index, from the part to what names it, so that a purge costs what it
takes away, however much the store holds. Blocks for that long; belongs in a thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

from mirror.core.digest import Digest
from mirror.core.freshness import TagRecord
from mirror.core.names import ImagePattern, Repository, Tag
from mirror.core.signatures import signature_tags
from mirror.storage.blobs import BlobFiles
from mirror.storage.generation import Generation
from mirror.storage.images import Reach, reach, record_parts
from mirror.storage.index import Index, ReadCheck
from mirror.storage.rows import Kind


@dataclass(frozen=True)
class Order:
    """What to purge.

    Attributes:
        pulled_before: seconds since the epoch; only what no client has asked for since. None for all.
        soft: keep everything, but have each tag revalidated at its next pull.
        dry_run: change nothing.
    """

    pattern: ImagePattern
    pulled_before: float | None = None
    soft: bool = False
    dry_run: bool = False


@dataclass(frozen=True)
class Purged:
    """What went, or would go.

    Attributes:
        size: bytes of the files.
    """

    tags: int
    manifests: int
    blobs: int
    size: int


_Entry: TypeAlias = tuple[Repository, Tag, TagRecord]
_Row: TypeAlias = tuple[Repository, Digest]

# Indexes nest two deep in practice; a hostile one could nest for ever.
_MAX_DEPTH = 4
_KINDS: tuple[Kind, ...] = ("manifest", "blob")


@dataclass(frozen=True)
class _Leaving:
    """What is looked at as if it had gone already.

    Attributes:
        rows: that repositories hold manifests.
        manifests: nothing needs these any more, so they need nothing.
    """

    tags: AbstractSet[tuple[Repository, Tag]] = frozenset()
    rows: AbstractSet[_Row] = frozenset()
    manifests: AbstractSet[Digest] = frozenset()


_NOTHING = _Leaving()


class Purge:
    """Carries out purges on a store that others use at the same time."""

    def __init__(self, files: BlobFiles, index: Index, generation: Generation) -> None:
        self._files = files
        self._index = index
        self._generation = generation

    def carry_out(self, order: Order) -> Purged:
        """Purge, and say what went. It counts at once in every process; pulls that are under way finish.

        Raises:
            StorageError: the index cannot be read, so that nobody knows what other images need.
        """
        reliable, began = ReadCheck(self._index), time.time()
        self._index.label()
        before = float("inf") if order.pulled_before is None else order.pulled_before
        going = [entry for entry in self._index.tags.matching(order.pattern) if entry[2].pulled < before]
        if order.soft:
            return self._expire(going, dry_run=order.dry_run)
        record_parts(self._files, self._index)
        rows = self._leaving_rows(order, going)
        going += self._signatures(rows, going)
        rows = self._leaving_rows(order, going) | rows | self._referrers(rows, going)
        leaving = _Leaving({(repository, tag) for repository, tag, _ in going}, rows)
        lost = reach(self._files, {record.digest for *_, record in going} | {digest for _, digest in rows})
        reliable.check()
        if order.dry_run:
            return self._counted(len(going), lost, leaving)
        tags = self._forget(order, going, rows, began)
        manifests = self._remove(lost.manifests, reliable)
        blobs = self._remove(lost.blobs - lost.manifests, reliable)
        self._generation.change()
        return Purged(tags, len(manifests), len(blobs), sum(manifests) + sum(blobs))

    # ---- what goes

    def _leaving_rows(self, order: Order, going: Sequence[_Entry]) -> set[_Row]:
        """The manifests that their repositories stop holding: named by the pattern, or only reached from tags that go."""
        leaving = _Leaving({(repository, tag) for repository, tag, _ in going})
        candidates: set[_Row] = set()
        for repository, digests in _by_repository(going).items():
            reached = reach(self._files, digests).manifests
            candidates |= {
                (repository, digest) for digest in reached if self._index.manifests.get(repository, digest) is not None
            }
        if order.pattern.tag is None:
            rows = self._index.manifests.rows(order.pattern.only_repository())
            candidates |= {row for row in rows if order.pattern.matches(row[0], None, row[1]) and self._is_old(order, row[1])}
        return {row for row in candidates if not self._is_tagged(*row, leaving)}

    def _signatures(self, rows: Iterable[_Row], going: Sequence[_Entry]) -> list[_Entry]:
        """The signature tags of manifests that go, beside those that go anyway."""
        known = {(repository, tag) for repository, tag, _ in going}
        names = ((repository, tag) for repository, digest in rows for tag in signature_tags(digest))
        return [(*name, record) for name in names if name not in known and (record := self._index.tags.get(*name)) is not None]

    def _referrers(self, rows: Iterable[_Row], going: Sequence[_Entry]) -> set[_Row]:
        """The manifests about manifests that go, unless a tag leads to them."""
        leaving = _Leaving({(repository, tag) for repository, tag, _ in going})
        found = {(name, about) for name, digest in rows for about in self._index.attachments.referrers(name, digest)}
        return {row for row in found if self._index.manifests.get(*row) is not None and not self._is_tagged(*row, leaving)}

    def _is_old(self, order: Order, digest: Digest) -> bool:
        return order.pulled_before is None or (self._files.used(digest) or 0.0) < order.pulled_before

    def _counted(self, tags: int, lost: Reach, leaving: _Leaving) -> Purged:
        """What would go."""
        manifests = {digest for digest in lost.manifests if not self._is_needed(digest, leaving)}
        leaving = replace(leaving, manifests=manifests)
        blobs = {digest for digest in lost.blobs - lost.manifests if not self._is_needed(digest, leaving)}
        sizes = [[size for digest in group if (size := self._files.size(digest))] for group in (manifests, blobs)]
        return Purged(tags, len(sizes[0]), len(sizes[1]), sum(map(sum, sizes)))

    def _expire(self, going: Sequence[_Entry], *, dry_run: bool) -> Purged:
        if not dry_run:
            now = time.time()
            for repository, tag, _ in going:
                self._index.tags.expire(repository, tag, now)
            self._generation.change()
        return Purged(len(going), 0, 0, 0)

    # ---- what stays

    def _is_tagged(self, repository: Repository, digest: Digest, leaving: _Leaving, depth: int = 0) -> bool:
        """Whether a tag of the repository leads to a manifest."""
        if any((repository, tag) not in leaving.tags for tag in self._index.tags.naming(repository, digest)):
            return True
        parents = self._index.parts.naming("manifest", repository, digest) if depth < _MAX_DEPTH else ()
        return any(self._is_tagged(repository, parent, leaving, depth + 1) for parent in parents)

    def _is_needed(self, digest: Digest, leaving: _Leaving, depth: int = 0) -> bool:
        """Whether a tag names a manifest or a blob, a repository holds it as a manifest, or anything that is needed needs it."""
        if any(name not in leaving.tags for name in self._index.tags.naming_anywhere(digest)):
            return True
        if any((repository, digest) not in leaving.rows for repository in self._index.manifests.holders(digest)):
            return True
        if depth == _MAX_DEPTH:
            return False
        seen = set(leaving.manifests)
        for kind in _KINDS:
            for _, parent in self._index.parts.naming_anywhere(kind, digest):
                if parent not in seen and self._is_needed(parent, leaving, depth + 1):
                    return True
                seen.add(parent)
        return False

    # ---- doing it

    def _forget(self, order: Order, going: Sequence[_Entry], rows: Iterable[_Row], began: float) -> int:
        """Forget names, before files go: whoever looks now asks upstream rather than for a file that is about to vanish."""
        forgotten = sum(self._index.tags.delete_unchanged(*entry) for entry in going)
        released = [row for row in rows if self._index.change(partial(self._release, *row, began))]
        for part in {part for row in released for part in self._parts(*row)}:
            self._index.change(partial(self._index.release_part, *part))
        for row in rows:
            self._index.attachments.delete(*row)
        self._index.negative.delete_matching(order.pattern)
        self._generation.change()
        return forgotten

    def _release(self, repository: Repository, digest: Digest, began: float) -> bool:
        """Delete the record that a repository holds a manifest, unless it or a tag that leads to it has arrived again."""
        if self._index.manifests.is_newer(repository, digest, began) or self._is_tagged(repository, digest, _NOTHING):
            return False
        self._index.manifests.delete(repository, digest)
        return True

    def _parts(self, repository: Repository, manifest: Digest) -> Iterator[tuple[Kind, Repository, Digest]]:
        """Yield a manifest and what it names."""
        yield "manifest", repository, manifest
        for part in self._index.parts.of(repository, manifest) or ():
            yield part.kind, repository, part.digest

    def _remove(self, digests: Iterable[Digest], reliable: ReadCheck) -> list[int]:
        """Remove what nothing needs; returns the bytes of each file that went."""
        sizes = (self._index.change(partial(self._remove_one, digest, reliable)) for digest in digests)
        return [size for size in sizes if size]

    def _remove_one(self, digest: Digest, reliable: ReadCheck) -> int:
        # While nobody can write that he needs it: an image that arrives now is known before, or finds that the file has gone.
        needed = self._is_needed(digest, _NOTHING)
        reliable.check()
        if needed:
            return 0
        self._index.parts.delete_everywhere(digest)
        return self._files.delete(digest)


def _by_repository(entries: Iterable[_Entry]) -> dict[Repository, set[Digest]]:
    found: dict[Repository, set[Digest]] = {}
    for repository, _, record in entries:
        found.setdefault(repository, set()).add(record.digest)
    return found
