"""Stored content and the permissions to it: a repository is served only what upstream grants it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial

import structlog

from mirror.aio import on_bytes
from mirror.cache.access_index import Grant
from mirror.cache.context import Context
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.manifest import MAX_MANIFEST_BYTES, Manifest, parse_manifest
from mirror.core.names import Reference, Repository
from mirror.errors import AccessDenied, NotFound, StorageError, UpstreamRefusal
from mirror.storage.manifests import ManifestRecord
from mirror.storage.parts import parts_of
from mirror.storage.rows import Kind
from mirror.throttled_log import ThrottledLog

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CachedManifest:
    """A manifest in the store."""

    digest: Digest
    media_type: str
    raw: bytes


class CachedContent:
    """Reads and writes stored manifests, their grants, and negative entries."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._log = ThrottledLog(log)

    async def read_manifest(self, repository: Repository, digest: Digest) -> CachedManifest | None:
        """Read a manifest from the store, without a check of grants; a damaged one is deleted."""
        context = self._context
        size = context.store.files.size(digest)
        raw = context.store.small.get(digest)
        length = size if raw is None else len(raw)
        if length is None or length > MAX_MANIFEST_BYTES:
            return None
        return await on_bytes(length, context.store.threads.serve, self._read, repository, digest, raw)

    def _read(self, repository: Repository, digest: Digest, raw: bytes | None) -> CachedManifest | None:
        if raw is None:
            raw = self._context.store.files.read(digest, MAX_MANIFEST_BYTES)
        if raw is None:
            return None
        if Digest.of(raw, digest.algorithm) != digest:
            self._drop_damaged(digest)
            return None
        known = self._context.access.media_type(repository, digest)
        if known is not None:
            return CachedManifest(digest, known, raw)
        try:
            return CachedManifest(digest, parse_manifest(raw, None, digest).media_type, raw)
        except InvalidInput:
            return None

    def _drop_damaged(self, digest: Digest) -> None:
        log.error("manifest_damaged", digest=str(digest), consequence="dropped; it is fetched again")
        self._context.store.files.delete(digest)
        self._context.store.generation.change()

    def is_authorized(self, kind: Kind, repository: Repository, digest: Digest) -> bool:
        """Whether a repository may be served a digest without asking upstream."""
        return self.grant(kind, repository, digest) is not None

    def grant(self, kind: Kind, repository: Repository, digest: Digest) -> Grant | None:
        """The grant of a digest to a repository, or None."""
        private = self._context.is_private(repository)
        return self._context.access.find(kind, repository, digest, private=private)

    async def store(self, repository: Repository, manifest: Manifest) -> bool:
        """Store a manifest that upstream has just given; False if the store cannot take it."""
        context = self._context
        held, parts = ManifestRecord(manifest.media_type, len(manifest.raw)), parts_of(manifest)
        # Before the bytes: a concurrent purge keeps what a recorded manifest needs.
        context.access.record_grant("manifest", repository, manifest.digest, held.size)
        context.access.record_manifest(repository, manifest.digest, held, parts)
        await context.access.wait_written()
        try:
            await context.put(repository, manifest.digest, manifest.raw)
        except StorageError as error:
            self._log.log("warning", "manifest_not_stored", digest=str(manifest.digest), cause=str(error))
            return False
        # And after them: maintenance deletes rows without bytes.
        context.access.repeat_grant("manifest", repository, manifest.digest, held.size)
        context.access.record_manifest(repository, manifest.digest, held, parts, force=True)
        await self._restore_purged(repository, manifest)
        return True

    async def _restore_purged(self, repository: Repository, manifest: Manifest) -> None:
        """Store a manifest again if a purge has deleted it before its rows were repeated."""
        context = self._context
        await context.access.wait_written()
        if context.store.files.size(manifest.digest) is None and context.store.small.get(manifest.digest) is None:
            with contextlib.suppress(StorageError):
                await context.put(repository, manifest.digest, manifest.raw)

    async def record_cached(self, repository: Repository, manifest: CachedManifest) -> None:
        """Record that a repository holds a stored manifest that upstream grants it, and the parts that it names."""
        context, digest, size = self._context, manifest.digest, len(manifest.raw)
        if not context.access.holds(repository, digest):
            serve, media_type = context.store.threads.serve, manifest.media_type
            parsed = await on_bytes(size, serve, parse_manifest, manifest.raw, media_type, digest)
            context.access.record_manifest(repository, digest, ManifestRecord(media_type, size), parts_of(parsed))

    # ---- negative cache

    def raise_if_negative(self, kind: Kind, repository: Repository, reference: Reference) -> None:
        """Raise NotFound or AccessDenied if upstream has refused a reference within `not_found_ttl`."""
        index = self._context.store.index
        if index.negative.is_absent(kind, repository, reference):
            if index.negative.is_denied(kind, repository, reference):
                raise AccessDenied(f"upstream has lately said that it does not grant {repository} {reference}")
            raise NotFound(f"upstream has lately said that it does not have {repository} {reference}")

    async def cache_negative(self, kind: Kind, repository: Repository, reference: Reference, error: UpstreamRefusal) -> None:
        """Cache upstream's refusal of a reference for `not_found_ttl`, and revoke the grant of a refused digest."""
        context = self._context
        if isinstance(reference, Digest):
            context.access.revoke_grant(kind, repository, reference)
            if context.cluster is not None:
                await context.cluster.grants.revoke(kind, repository, reference)
        seconds = context.policies.general.not_found_ttl
        if context.cluster is not None:
            await context.cluster.refusals.share(kind, repository, reference, error, seconds)
        denied = isinstance(error, AccessDenied)
        await context.note(partial(context.store.index.negative.put, kind, repository, reference, seconds, denied=denied), None)
