"""Purge: take images out of the store, without touching what other images need.

Blocks for as long as reading the held manifests takes; belongs in a thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mirror.core.digest import Digest
from mirror.core.freshness import TagRecord
from mirror.core.names import ImagePattern, Repository, Tag
from mirror.images import reach
from mirror.storage.blobs import BlobFiles
from mirror.storage.generation import Generation
from mirror.storage.index import Index


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


class Purge:
    """Carries out purges on a store that others use at the same time."""

    def __init__(self, files: BlobFiles, index: Index, generation: Generation) -> None:
        self._files = files
        self._index = index
        self._generation = generation

    def carry_out(self, order: Order) -> Purged:
        """Purge, and say what went. It counts at once in every process; pulls that are under way finish."""
        tags = list(self._index.tags())
        rows = set(self._index.manifests())
        going = [entry for entry in tags if self._is_meant(order, *entry)]
        if order.soft:
            return self._expire(going, dry_run=order.dry_run)
        gone = set(going)
        staying = [entry for entry in tags if entry not in gone]
        leaving = self._leaving_rows(order, going, staying, rows)
        lost = reach(self._files, {record.digest for _, _, record in going} | {digest for _, digest in leaving})
        kept = reach(self._files, {record.digest for _, _, record in staying} | {digest for _, digest in rows - leaving})
        needed = kept.manifests | kept.blobs
        manifests, blobs = lost.manifests - needed, lost.blobs - needed - lost.manifests
        if not order.dry_run:
            self._forget(order, going, leaving)
        sizes = [self._remove(digests, dry_run=order.dry_run) for digests in (manifests, blobs)]
        if not order.dry_run:
            self._generation.change()
        return Purged(len(going), len(sizes[0]), len(sizes[1]), sum(sizes[0]) + sum(sizes[1]))

    def _is_meant(self, order: Order, repository: Repository, tag: Tag, record: TagRecord) -> bool:
        if not order.pattern.matches(repository, tag, record.digest):
            return False
        return order.pulled_before is None or record.pulled < order.pulled_before

    def _leaving_rows(
        self,
        order: Order,
        going: list[tuple[Repository, Tag, TagRecord]],
        staying: list[tuple[Repository, Tag, TagRecord]],
        rows: set[tuple[Repository, Digest]],
    ) -> set[tuple[Repository, Digest]]:
        """The manifests that their repositories stop holding: named by the pattern, or only reached from tags that go."""
        leaving = set()
        owned, gone, left = _by_repository(rows), _by_repository(_named(going)), _by_repository(_named(staying))
        for repository, digests in owned.items():
            reached = reach(self._files, gone.get(repository, ())).manifests
            needed = reach(self._files, left.get(repository, ())).manifests
            for digest in digests - needed:
                named = order.pattern.matches(repository, None, digest) and self._is_old(order, digest)
                if named or digest in reached:
                    leaving.add((repository, digest))
        return leaving

    def _is_old(self, order: Order, digest: Digest) -> bool:
        return order.pulled_before is None or (self._files.used(digest) or 0.0) < order.pulled_before

    def _expire(self, going: list[tuple[Repository, Tag, TagRecord]], *, dry_run: bool) -> Purged:
        if not dry_run:
            now = time.time()
            for repository, tag, _ in going:
                self._index.expire_tag(repository, tag, now)
            self._generation.change()
        return Purged(len(going), 0, 0, 0)

    def _forget(
        self, order: Order, going: list[tuple[Repository, Tag, TagRecord]], leaving: set[tuple[Repository, Digest]]
    ) -> None:
        # Before the files go: whoever looks now asks upstream rather than for a file that is about to vanish.
        for repository, tag, _ in going:
            self._index.delete_tag(repository, tag)
        for repository, digest in leaving:
            self._index.delete_manifest(repository, digest)
        self._index.forget_absent(order.pattern)
        self._generation.change()

    def _remove(self, digests: Iterable[Digest], *, dry_run: bool) -> list[int]:
        sizes = ((self._files.size(digest) or 0) if dry_run else self._files.delete(digest) for digest in digests)
        return [size for size in sizes if size]


def _named(entries: Iterable[tuple[Repository, Tag, TagRecord]]) -> Iterator[tuple[Repository, Digest]]:
    return ((repository, record.digest) for repository, _, record in entries)


def _by_repository(entries: Iterable[tuple[Repository, Digest]]) -> dict[Repository, set[Digest]]:
    found: dict[Repository, set[Digest]] = {}
    for repository, digest in entries:
        found.setdefault(repository, set()).add(digest)
    return found
