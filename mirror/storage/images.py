"""Cached images: the content that a manifest needs, and how much of it is cached."""

from __future__ import annotations

import functools
import heapq
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TypeAlias

from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.manifest import MAX_MANIFEST_BYTES, Manifest, ManifestKind, parse_manifest
from mirror.core.names import ImagePattern, Repository, Tag, parse_reference
from mirror.core.signatures import signature_tags
from mirror.storage.blobs import BlobFiles
from mirror.storage.index import Index
from mirror.storage.parts import parts_of
from mirror.storage.rows import parse_repository

# Real indexes nest two deep; a hostile one could nest endlessly.
_MAX_DEPTH = 4
# Manifests of one image that are read twice.
_MAX_KEPT = 64

# A tag with its last pull, or a manifest.
_Row: TypeAlias = tuple[Repository, Tag | None, Digest, float | None]


@dataclass(frozen=True)
class Reach:
    """The content that some manifests need.

    Attributes:
        manifests: named as manifests, cached or not.
        blobs: named as config or layer, cached or not.
        complete: whether everything that a client of at least one platform needs is cached.
    """

    manifests: frozenset[Digest]
    blobs: frozenset[Digest]
    complete: bool


@dataclass(frozen=True, slots=True)
class Image:
    """A tag, or a manifest that was pulled by digest, and what is cached of it.

    Attributes:
        size: bytes of the cached content.
        pulled: last pull by a client, in seconds since the epoch.
    """

    repository: Repository
    tag: Tag | None
    digest: Digest
    size: int
    pulled: float
    complete: bool

    @property
    def name(self) -> str:
        """The name by which it is explained and purged."""
        return f"{self.repository}:{self.tag}" if self.tag is not None else f"{self.repository}@{self.digest}"


def held_manifest(files: BlobFiles, digest: Digest, media_type: str | None = None) -> Manifest | None:
    """Read a cached manifest; None if it is not cached or is not a manifest."""
    raw = files.read(digest, MAX_MANIFEST_BYTES)
    if raw is None:
        return None
    try:
        return parse_manifest(raw, media_type, digest)
    except InvalidInput:
        return None


def is_complete(files: BlobFiles, digest: Digest) -> bool:
    """Whether all blobs of a manifest are cached; of an index, those of at least one of its manifests."""
    return _is_complete(files, partial(held_manifest, files), digest)


def _is_complete(files: BlobFiles, read: Callable[[Digest], Manifest | None], digest: Digest, depth: int = 0) -> bool:
    manifest = read(digest) if depth <= _MAX_DEPTH else None
    if manifest is None:
        return False
    if manifest.kind is ManifestKind.INDEX:
        children = manifest.children
        return not children or any(_is_complete(files, read, child.digest, depth + 1) for child in children)
    return all(files.size(blob.digest) is not None for blob in manifest.blobs if not blob.is_foreign)


def reach(files: BlobFiles, roots: Iterable[Digest]) -> Reach:
    """Return everything that the manifests `roots` need. Blocks while it reads the cached ones."""
    start = list(roots)
    read = lru_cache(_MAX_KEPT)(partial(held_manifest, files))
    manifests: set[Digest] = set()
    blobs: set[Digest] = set()
    waiting = [(digest, 0) for digest in start]
    while waiting:
        digest, depth = waiting.pop()
        if digest in manifests:
            continue
        manifests.add(digest)
        manifest = read(digest) if depth <= _MAX_DEPTH else None
        if manifest is not None:
            blobs.update(blob.digest for blob in manifest.blobs)
            waiting += [(child.digest, depth + 1) for child in manifest.children]
    complete = bool(start) and all(_is_complete(files, read, digest) for digest in start)
    return Reach(frozenset(manifests), frozenset(blobs), complete)


def record_parts(files: BlobFiles, index: Index, pause: Callable[[], bool] = lambda: False) -> None:
    """Record the parts of cached manifests, if an earlier version has not or they were lost.

    Args:
        pause: called for each manifest; True ends the pass.
    """
    if index.parts.is_complete:
        return
    rows = set(index.manifests.rows())
    rows |= {(repository, record.digest) for repository, _, record in index.tags.matching()}
    for repository, digest in rows:
        if pause():
            return
        _record(files, index, repository, digest)
    index.parts.complete()


def _record(files: BlobFiles, index: Index, repository: Repository, digest: Digest, depth: int = 0) -> None:
    manifest = None if index.parts.has(repository, digest) else held_manifest(files, digest)
    if manifest is None or depth > _MAX_DEPTH:
        return
    index.parts.put(repository, digest, parts_of(manifest))
    for child in manifest.children:
        _record(files, index, repository, child.digest, depth + 1)


def attached(index: Index, repository: Repository, digest: Digest) -> set[Digest]:
    """Return the manifests about a manifest that are known in its repository: by its signature tags, and as referrers."""
    records = (index.tags.get(repository, tag) for tag in signature_tags(digest))
    return {record.digest for record in records if record is not None} | index.attachments.referrers(repository, digest)


def held_size(files: BlobFiles, reached: Reach) -> int:
    """Return the cached bytes of everything that was reached."""
    return sum(files.size(part) or 0 for part in reached.manifests | reached.blobs)


def images(files: BlobFiles, index: Index, pattern: ImagePattern | None = None) -> Iterator[Image]:
    """Yield the tags whose manifest is cached and the cached manifests without a tag that a pattern matches.

    One repository follows another, so that no more than one of them is in memory.
    """
    # Which manifests of a repository have no tag follows from all of its tags.
    all_tags = pattern if pattern is None or pattern.tag is not None else replace(pattern, digest=None)
    tags = ((repository, tag, record.digest, record.pulled) for repository, tag, record in index.tags.matching(all_tags))
    only = None if pattern is None else pattern.only_repository()
    manifests = ((repository, None, digest, None) for repository, digest in index.manifests.rows(only))
    # Both are in the order of their keys; the tags of a repository come before its manifests.
    rows: Iterator[_Row] = heapq.merge(tags, manifests, key=_key)
    for _, of_repository in itertools.groupby(rows, key=_key):
        yield from _images_of(files, of_repository, pattern)


def _key(row: _Row) -> str:
    """Return the part of a key of the index that all rows of a repository have."""
    return f"{row[0]}|"


def _images_of(files: BlobFiles, rows: Iterable[_Row], pattern: ImagePattern | None) -> Iterator[Image]:
    """Yield the images of one repository that a pattern matches."""
    tagged: set[Digest] = set()

    @functools.cache
    def reach_of(digest: Digest) -> Reach:
        """What a manifest reaches; several tags may name it."""
        return reach(files, [digest])

    @functools.cache
    def size_of(digest: Digest) -> int:
        return held_size(files, reach_of(digest))

    for repository, tag, digest, pulled in rows:
        if tag is not None:
            tagged |= reach_of(digest).manifests
        elif digest in tagged:
            continue
        if _matches(pattern, repository, tag, digest) and (used := files.used(digest)) is not None:
            last = used if pulled is None else pulled
            yield Image(repository, tag, digest, size_of(digest), last, reach_of(digest).complete)


def find_images(files: BlobFiles, index: Index, names: Iterable[str]) -> Iterator[Image]:
    """Yield the images with the names (`Image.name`), without those that are not cached any more."""
    rows = (row for name in names if (row := _row(index, name)) is not None)
    for _, of_repository in itertools.groupby(rows, key=_key):
        yield from _images_of(files, of_repository, None)


def _row(index: Index, name: str) -> _Row | None:
    head, is_digest, text = name.partition("@")
    if not is_digest:
        head, _, text = name.rpartition(":")
    repository, reference = parse_repository(head), parse_reference(text)
    if repository is None:
        return None
    if isinstance(reference, Digest):
        return repository, None, reference, None
    record = index.tags.get(repository, reference)
    if record is None:
        return None
    return repository, reference, record.digest, max(record.pulled, index.tags.pulls(repository, reference).last)


def _matches(pattern: ImagePattern | None, repository: Repository, tag: Tag | None, digest: Digest) -> bool:
    return pattern is None or pattern.matches(repository, tag, digest)
