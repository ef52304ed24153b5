"""The source of blobs that the store lacks: an upstream, through one repository, or another node that has asked it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Hashable
from dataclasses import dataclass, field
from functools import partial

from mirror.cache.context import Context
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.download.source import AskForRanges, BlobRange, BlobStream
from mirror.upstream.blob import ExpectedSize
from mirror.upstream.registry import Registry


@dataclass(frozen=True)
class UpstreamSource:
    """Fetches a blob through one repository; see `mirror.download.source.Source`.

    An answer of upstream records the grant. Another node of the cluster sends the blob with or without a grant.
    """

    registry: Registry
    repository: Repository
    digest: Digest
    context: Context = field(compare=False)
    size: ExpectedSize = field(compare=False)
    lazy_size: int | None = field(default=None, compare=False)

    @classmethod
    def of(cls, context: Context, repository: Repository, digest: Digest) -> UpstreamSource:
        """The source of a blob; raises NotFound if the registry is not configured."""
        size = ExpectedSize(partial(context.access.size_named, repository, digest))
        return cls(context.registry(repository), repository, digest, context, size)

    def open(self, start: int, stop: int | None) -> contextlib.AbstractAsyncContextManager[BlobStream]:
        cluster, objects = self.context.cluster, self.context.objects
        if objects is not None:
            # Also one that another node sends, and that the store has no room for.
            objects.note_use(self.digest)
        if cluster is None:
            return self._open_outside(start, stop)
        return cluster.source.open(self._range(start, stop), self._open_outside)

    def _open_outside(self, start: int, stop: int | None) -> contextlib.AbstractAsyncContextManager[BlobStream]:
        """Open a stream from the bucket if there is one, else from upstream."""
        objects = self.context.objects
        if objects is None:
            return self._open_upstream(start, stop)
        return objects.blob(self._range(start, stop), partial(self._open_upstream, start, stop))

    def _range(self, start: int, stop: int | None) -> BlobRange:
        return BlobRange(self.repository, self.digest, start, stop, self.named_size())

    @contextlib.asynccontextmanager
    async def _open_upstream(self, start: int, stop: int | None) -> AsyncIterator[BlobStream]:
        cluster = self.context.cluster
        if cluster is not None:
            await cluster.refusals.raise_if_refused("blob", self.repository, self.digest)
        async with self.registry.blob(self.repository.path, self.digest, start, stop, self.size) as stream:
            self.context.access.record_grant("blob", self.repository, self.digest, stream.size)
            if cluster is not None:
                await cluster.grants.share("blob", self.repository, self.digest, stream.size)
            yield stream

    def named_size(self) -> int | None:
        return self.context.access.size_named(self.repository, self.digest)

    @property
    def origin(self) -> Hashable:
        cluster = self.context.cluster
        # The speed of other nodes says nothing about that of upstream.
        return self.registry.name if cluster is None or not cluster.source.follows(self.digest) else ("nodes", self.registry.name)

    @property
    def ranges(self) -> AskForRanges | None:
        cluster = self.context.cluster
        return None if cluster is None else partial(cluster.source.ranges, BlobRange(self.repository, self.digest, 0, 1))

    @property
    def owner(self) -> str:
        return self.registry.name

    def keep_open(self) -> contextlib.AbstractContextManager[None]:
        return self.context.in_use.hold()

    def penalize(self) -> None:
        cluster, objects = self.context.cluster, self.context.objects
        if cluster is not None and cluster.source.penalize(self.digest):
            return
        if objects is None or not objects.penalize(self.digest):
            self.registry.penalize(self.digest)
