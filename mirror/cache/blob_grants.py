"""How a repository gets the grant of a blob: from another node, from upstream, or from what upstream said last."""

from __future__ import annotations

import asyncio
import contextlib

from mirror.aio import SingleFlight
from mirror.cache.access_index import UNKNOWN_SIZE
from mirror.cache.content import CachedContent
from mirror.cache.context import Context
from mirror.cache.recorded_grants import RecordedGrants
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.errors import UpstreamError, UpstreamRefusal

# Upstream answers a HEAD instead in about that time.
_BUCKET_TIMEOUT_S = 1.0


class BlobGrants:
    """Asks for grants of blobs.

    Args:
        recorded: says what is granted while upstream cannot be asked.
    """

    def __init__(self, context: Context, content: CachedContent, recorded: RecordedGrants) -> None:
        self._context = context
        self._content = content
        self._recorded = recorded
        # Not guarded: a failure must not delay the next request for a grant.
        self._heads: SingleFlight[int | None] = SingleFlight(context.in_use)

    async def require(self, repository: Repository, digest: Digest) -> None:
        """Have a blob granted to a repository, unless it is known to be. Raises like `ask`."""
        if not self._content.is_authorized("blob", repository, digest):
            await self.ask(repository, digest)

    async def ask(self, repository: Repository, digest: Digest) -> int | None:
        """Have a blob granted to a repository; returns the size if upstream reports it.

        Raises:
            UpstreamRefusal: upstream does not grant it.
            UpstreamError: upstream cannot be asked.
        """
        try:
            size, _ = await self._heads.run((repository, digest), lambda: self._request(repository, digest))
        except UpstreamError as error:
            if not await self._recorded.grant("blob", repository, digest, error):
                raise
            return self._context.access.size_named(repository, digest)
        return size

    async def close(self) -> None:
        """Cancel the requests to upstream."""
        await self._heads.close()

    async def _request(self, repository: Repository, digest: Digest) -> int | None:
        size = await self._adopted(repository, digest) or await self._published(repository, digest)
        if size is not None:
            return size
        try:
            size = await self._context.registry(repository).head_blob(repository.path, digest)
        except UpstreamRefusal as error:
            await self._content.cache_negative("blob", repository, digest, error)
            raise
        self._context.access.record_grant("blob", repository, digest, UNKNOWN_SIZE if size is None else size)
        if size is not None and self._context.cluster is not None:
            await self._context.cluster.grants.share("blob", repository, digest, size)
        return size

    async def _adopted(self, repository: Repository, digest: Digest) -> int | None:
        """The size of a held blob that another node was granted."""
        cluster, size = self._context.cluster, self._context.store.files.size(digest)
        if cluster is None or size is None:
            return None
        return size if await cluster.grants.adopt("blob", repository, digest, size) else None

    async def _published(self, repository: Repository, digest: Digest) -> int | None:
        """The size of a blob that a manifest of the repository names, and that the registry has published, as the bucket says."""
        objects, access = self._context.objects, self._context.access
        if objects is None or repository.registry not in objects.scopes or access.size_named(repository, digest) is None:
            return None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_BUCKET_TIMEOUT_S):
                await objects.learn_published(repository, digest)
        grant = self._content.grant("blob", repository, digest)
        return None if grant is None else grant.size
