"""What is held, and for whom: content on disk is served only through a repository in which upstream grants it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import structlog

from mirror.aio import on_bytes
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.manifest import Manifest, parse_manifest
from mirror.core.names import Reference, Repository
from mirror.errors import AccessDenied, NotFound, StorageError, UpstreamAnswer
from mirror.images import MANIFEST_LIMIT
from mirror.pull.context import Context
from mirror.storage.index import Held
from mirror.storage.parts import Kind, parts_of

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HeldManifest:
    """A manifest from disk."""

    digest: Digest
    media_type: str
    raw: bytes


class Holdings:
    """Looks up and remembers what is held, with the rights to it.

    Where a registry is used without credentials everything in it is public: what was granted once is granted to all. Where no
    registry has credentials, nothing that is held needs a grant, so that a lost index costs nothing.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    async def manifest(self, repository: Repository, digest: Digest) -> HeldManifest | None:
        """A manifest from disk, whoever may see it; one that is no longer what its digest says goes."""
        context = self._context
        size = context.files.size(digest)
        raw = context.small.get(digest)
        length = size if raw is None else len(raw)
        if length is None or length > MANIFEST_LIMIT:
            return None
        return await on_bytes(length, context.threads.serve, self._read, repository, digest, raw)

    def _read(self, repository: Repository, digest: Digest, raw: bytes | None) -> HeldManifest | None:
        if raw is None:
            raw = self._context.files.read(digest, MANIFEST_LIMIT)
        if raw is None:
            return None
        if Digest.of(raw, digest.algorithm) != digest:
            self._drop_damaged(digest)
            return None
        known = self._context.index.manifest(repository, digest)
        if known is not None:
            return HeldManifest(digest, known.media_type, raw)
        try:
            return HeldManifest(digest, parse_manifest(raw, None, digest).media_type, raw)
        except InvalidInput:
            return None

    def _drop_damaged(self, digest: Digest) -> None:
        log.error("manifest_damaged", digest=str(digest), consequence="dropped; it is fetched again")
        self._context.files.delete(digest)
        self._context.generation.change()

    def may_serve_manifest(self, repository: Repository, digest: Digest) -> bool:
        """Whether upstream is known to grant it to the repository as a manifest."""
        context = self._context
        if not context.private or context.index.manifest(repository, digest) is not None:
            return True
        return context.index.granted("manifest", context.scope(repository), digest) is not None

    def may_serve_blob(self, repository: Repository, digest: Digest) -> bool:
        """Whether upstream is known to grant it to the repository as a blob.

        What is only known as a manifest is none, even where everything is public.
        """
        context = self._context
        scope = context.scope(repository)
        if context.index.granted("blob", scope, digest) is not None:
            return True
        return not context.private and context.index.granted("manifest", scope, digest) is None

    def blob_size(self, repository: Repository, digest: Digest) -> int | None:
        """How many bytes upstream said that a blob has, if that is known."""
        return self._context.index.granted("blob", self._context.scope(repository), digest)

    async def keep(self, repository: Repository, manifest: Manifest) -> bool:
        """Store a manifest that upstream has just given; False if the store cannot take it."""
        context = self._context
        # Before the bytes: a purge that is under way looks for whoever needs them, and removes nothing that is recorded.
        await self._record(repository, manifest)
        try:
            await context.store(manifest.digest, manifest.raw)
        except StorageError as error:
            log.warning("manifest_not_stored", digest=str(manifest.digest), cause=str(error))
            return False
        # Rows without bytes are cleared away.
        await self._record(repository, manifest)
        return True

    async def _record(self, repository: Repository, manifest: Manifest) -> None:
        context = self._context
        if not context.index.parts.has(repository, manifest.digest):
            await context.note(partial(context.index.parts.put, repository, manifest.digest, parts_of(manifest)), None)
        await self.learn_manifest(repository, manifest.digest, manifest.media_type, len(manifest.raw))

    async def learn_manifest(self, repository: Repository, digest: Digest, media_type: str, size: int) -> None:
        """Remember that upstream grants a manifest to a repository."""
        context = self._context
        if context.index.manifest(repository, digest) is None:
            await context.note(partial(context.index.put_manifest, repository, digest, Held(media_type, size)), None)
        await self._grant("manifest", repository, digest, size)

    async def learn_blob(self, repository: Repository, digest: Digest, size: int) -> None:
        """Remember that upstream grants a blob to a repository."""
        await self._grant("blob", repository, digest, size)

    async def _grant(self, kind: Kind, repository: Repository, digest: Digest, size: int) -> None:
        context = self._context
        scope = context.scope(repository)
        if context.index.granted(kind, scope, digest) != size:
            await context.note(partial(context.index.grant, kind, scope, digest, size), None)

    # ---- negative answers

    def refuse_absent(self, kind: Kind, repository: Repository, reference: Reference) -> None:
        """Repeat upstream's no, if it has lately said so; raises NotFound or AccessDenied."""
        index = self._context.index
        if index.absent(kind, repository, reference):
            if index.denied(kind, repository, reference):
                raise AccessDenied(f"upstream has lately said that it does not grant {repository} {reference}")
            raise NotFound(f"upstream has lately said that it does not have {repository} {reference}")

    async def remember_absent(self, kind: Kind, repository: Repository, reference: Reference, error: UpstreamAnswer) -> None:
        """Remember upstream's no for a while."""
        context = self._context
        seconds = context.policies.general.not_found_ttl
        denied = isinstance(error, AccessDenied)
        await context.note(partial(context.index.put_absent, kind, repository, reference, seconds, denied=denied), None)
