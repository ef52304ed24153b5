"""Which blobs clients get from the bucket themselves: large ones of which nothing is here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mirror.cache.blob_grants import BlobGrants
from mirror.cache.context import Context
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.download.downloads import Downloads

if TYPE_CHECKING:
    from mirror.objects.redirects import ObjectRedirects


class BlobRedirects:
    """Decides about redirects to the bucket. A registry with an account has none: its blobs would be readable by URL."""

    def __init__(self, context: Context, downloads: Downloads, grants: BlobGrants) -> None:
        self._context = context
        self._downloads = downloads
        self._grants = grants
        self._redirects = None if context.objects is None else context.objects.redirects

    async def url(self, repository: Repository, digest: Digest, client: str) -> str | None:
        """Return a URL of the bucket for the client at an address; None if the blob is to be streamed.

        Raises:
            UpstreamRefusal: upstream does not grant it to this repository.
            UpstreamError: no grant is known, and upstream cannot be asked.
        """
        redirects = self._redirects
        if redirects is None or not redirects.is_for(client):
            return None
        promised = await self._promised(redirects, repository, digest)
        if promised is None:
            return None
        await self._grants.require(repository, digest)
        return await redirects.url(digest, promised)

    async def covers(self, repository: Repository, digest: Digest) -> bool:
        """Whether a client whose network allows it is redirected for a blob."""
        return self._redirects is not None and await self._promised(self._redirects, repository, digest) is not None

    async def _promised(self, redirects: ObjectRedirects, repository: Repository, digest: Digest) -> int | None:
        """The size that the bucket has of a blob for which clients are redirected; None if they are not."""
        if self._context.is_private(repository) or self._is_here(digest):
            return None
        return await redirects.promised(digest)

    def _is_here(self, digest: Digest) -> bool:
        """Whether a blob is held, or arrives in this process or another one."""
        is_held = self._context.store.files.size(digest) is not None
        return is_held or self._downloads.find(digest) is not None or self._downloads.is_driven(digest)
