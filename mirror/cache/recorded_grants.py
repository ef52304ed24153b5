"""What the records of tags in the bucket grant to a repository while upstream cannot be asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from mirror.aio import SingleFlight
from mirror.cache.content import CachedContent
from mirror.cache.context import Context
from mirror.core.bounded_cache import BoundedCache
from mirror.core.digest import Digest
from mirror.core.freshness import TagRecord
from mirror.core.manifest import Manifest
from mirror.core.names import Repository
from mirror.core.staleness import may_serve
from mirror.errors import UpstreamError
from mirror.storage.rows import Kind

if TYPE_CHECKING:
    # Imported only by a mirror with a bucket.
    from mirror.objects.reader import ObjectReader

# A client waits for it.
_TIMEOUT_S = 8.0
# Of the manifests of one repository, the newest records first.
_MAX_MANIFESTS = 100
_MAX_REPOSITORIES = 1000
_PAUSE_S = 30.0


class RecordedGrants:
    """Reads manifests that tags of a repository named last, so that they grant what they name, as upstream's answers would.

    For registries without an account only: there a manifest grants what it names.
    """

    def __init__(self, context: Context, content: CachedContent) -> None:
        self._context = context
        self._content = content
        self._reading: SingleFlight[None] = SingleFlight(context.in_use)
        # The repositories whose records have been read of late.
        self._read: BoundedCache[Repository, bool] = BoundedCache(_MAX_REPOSITORIES)

    async def grant(self, kind: Kind, repository: Repository, digest: Digest, error: UpstreamError) -> bool:
        """Whether a repository may be served a digest by the records of its tags, although upstream has failed.

        Args:
            error: how upstream has failed.
        """
        objects, now = self._context.objects, asyncio.get_running_loop().time()
        if objects is None or repository.registry not in objects.scopes:
            return False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_TIMEOUT_S):
                if self._read.get(repository, now) is None:
                    await self._reading.run(repository, lambda: self._read_all(objects, repository, error.reason))
                if kind == "blob" and self._context.access.size_named(repository, digest) is not None:
                    # It may have come from another node, which does not say so.
                    await objects.learn_published(repository, digest)
        return self._content.is_authorized(kind, repository, digest)

    async def close(self) -> None:
        """Stop reading."""
        await self._reading.close()

    async def _read_all(self, objects: ObjectReader, repository: Repository, reason: str) -> None:
        count = 0
        async for record in self._records(objects, repository, reason):
            self._context.access.record_grant("manifest", repository, record.digest, record.size)
            waiting = [record.digest]
            while waiting and count < _MAX_MANIFESTS:
                count += 1
                manifest = await self._take(objects, repository, waiting.pop())
                if manifest is not None:
                    waiting += [child.digest for child in manifest.children if child.is_manifest]
        self._read.put(repository, True, expires=asyncio.get_running_loop().time() + _PAUSE_S)

    async def _records(self, objects: ObjectReader, repository: Repository, reason: str) -> AsyncIterator[TagRecord]:
        """Yield what tags named last, as far as it may be served for a reason."""
        tags = self._context.store.index.tags
        async for tag, record in objects.tags(repository, _MAX_MANIFESTS):
            max_age = self._context.policies.for_tag(repository, tag).stale_if_error
            is_served = may_serve(reason, self._context.clock() - record.checked, max_age)
            if is_served and record.checked > tags.refused_at(repository, tag):
                yield record

    async def _take(self, objects: ObjectReader, repository: Repository, digest: Digest) -> Manifest | None:
        """Store a manifest, if it is granted; what it names is granted then, too."""
        manifest = await objects.manifest(repository, digest)
        if manifest is None or not self._content.is_authorized("manifest", repository, digest):
            return None
        await self._content.store(repository, manifest)
        return manifest
