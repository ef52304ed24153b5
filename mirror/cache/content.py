"""What is held, and for whom: content on disk is served only through a repository in which upstream grants it."""

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
from mirror.core.manifest import Manifest, parse_manifest
from mirror.core.names import Reference, Repository
from mirror.errors import AccessDenied, NotFound, StorageError, UpstreamRefusal
from mirror.storage.images import MANIFEST_LIMIT
from mirror.storage.index import Held
from mirror.storage.parts import Kind, parts_of
from mirror.throttled_log import ThrottledLog

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class CachedManifest:
    """A manifest from disk."""

    digest: Digest
    media_type: str
    raw: bytes


class CachedContent:
    """Looks up and records what is held, with the rights to it."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._log = ThrottledLog(log)

    async def manifest(self, repository: Repository, digest: Digest) -> CachedManifest | None:
        """A manifest from disk, whoever may see it; one that is no longer what its digest says goes."""
        context = self._context
        size = context.store.files.size(digest)
        raw = context.store.small.get(digest)
        length = size if raw is None else len(raw)
        if length is None or length > MANIFEST_LIMIT:
            return None
        return await on_bytes(length, context.store.threads.serve, self._read, repository, digest, raw)

    def _read(self, repository: Repository, digest: Digest, raw: bytes | None) -> CachedManifest | None:
        if raw is None:
            raw = self._context.store.files.read(digest, MANIFEST_LIMIT)
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
        """Whether a repository may be served a digest; if not, upstream has to be asked."""
        private = self._context.is_private(repository)
        return self._context.access.is_authorized(kind, repository, digest, private=private)

    def grant(self, kind: Kind, repository: Repository, digest: Digest) -> Grant | None:
        """Why a repository may be served a digest, with the size that is known of it; None if it may not. See `is_authorized`."""
        private = self._context.is_private(repository)
        return self._context.access.find(kind, repository, digest, private=private)

    async def keep(self, repository: Repository, manifest: Manifest) -> bool:
        """Store a manifest that upstream has just given; False if the store cannot take it."""
        context = self._context
        held, parts = Held(manifest.media_type, len(manifest.raw)), parts_of(manifest)
        # Before the bytes: a purge that is under way looks for whoever needs them, and removes nothing that is recorded.
        context.access.record_grant("manifest", repository, manifest.digest, held.size)
        context.access.record_manifest(repository, manifest.digest, held, parts)
        await context.access.written()
        try:
            await context.put(manifest.digest, manifest.raw)
        except StorageError as error:
            self._log.tell("warning", "manifest_not_stored", digest=str(manifest.digest), cause=str(error))
            return False
        # And after them: rows without bytes are cleared away.
        context.access.record_grant("manifest", repository, manifest.digest, held.size, anew=True)
        context.access.record_manifest(repository, manifest.digest, held, parts, anew=True)
        await self._keep_again(manifest)
        return True

    async def _keep_again(self, manifest: Manifest) -> None:
        """Store a manifest once more if a purge has removed it before it was recorded anew."""
        context = self._context
        await context.access.written()
        if context.store.files.size(manifest.digest) is None and context.store.small.get(manifest.digest) is None:
            with contextlib.suppress(StorageError):
                await context.put(manifest.digest, manifest.raw)

    async def record_held(self, repository: Repository, held: CachedManifest) -> None:
        """Record that a repository has a held manifest, which upstream grants it, and what it names."""
        context, digest, size = self._context, held.digest, len(held.raw)
        if not context.access.holds(repository, digest):
            manifest = await on_bytes(size, context.store.threads.serve, parse_manifest, held.raw, held.media_type, digest)
            context.access.record_manifest(repository, digest, Held(held.media_type, size), parts_of(manifest))

    # ---- negative answers

    def raise_if_negative(self, kind: Kind, repository: Repository, reference: Reference) -> None:
        """Repeat upstream's no, if it has lately said so; raises NotFound or AccessDenied."""
        index = self._context.store.index
        if index.absent(kind, repository, reference):
            if index.denied(kind, repository, reference):
                raise AccessDenied(f"upstream has lately said that it does not grant {repository} {reference}")
            raise NotFound(f"upstream has lately said that it does not have {repository} {reference}")

    async def cache_negative(self, kind: Kind, repository: Repository, reference: Reference, error: UpstreamRefusal) -> None:
        """Remember upstream's no for a while; what it granted before is not granted any more."""
        context = self._context
        if isinstance(reference, Digest):
            context.access.revoke_grant(kind, repository, reference)
        seconds = context.policies.general.not_found_ttl
        denied = isinstance(error, AccessDenied)
        await context.note(partial(context.store.index.put_absent, kind, repository, reference, seconds, denied=denied), None)
