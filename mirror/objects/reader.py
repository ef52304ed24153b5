"""Reads blobs and manifests from the bucket, before upstream is asked. It says nothing about who may have them."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import partial

import structlog

from mirror.core.bounded_cache import BoundedCache
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.freshness import TagRecord
from mirror.core.manifest import MAX_MANIFEST_BYTES, Manifest, ManifestKind, parse_manifest
from mirror.core.names import Repository, Tag
from mirror.download.source import BlobRange, BlobStream
from mirror.errors import UpstreamError
from mirror.objects.bucket import Bucket, ListedObject, ObjectStream
from mirror.objects.calls import ObjectAbsent
from mirror.objects.keys import SCOPES, blob_key, manifest_key, tag_key, tags_of
from mirror.objects.redirects import ObjectRedirects
from mirror.objects.tag_records import MAX_TAG_BYTES, read_tag
from mirror.objects.use_report import UseReport
from mirror.storage.rows import Kind

log = structlog.get_logger(__name__)

# The client of the bucket holds up to a megabyte for each stream whose reader is slow.
_MAX_STREAMS = 64
# Upstream is asked if no stream has ended by then.
_TURN_S = 5.0
_MAX_BLOBS = 10_000
_MAX_NEWS = 1000
# An object that broke off is left alone for a moment, a wrong one for longer.
_BROKEN_S, _WRONG_S = 30.0, 600.0
# An object that is found is recorded once in this time.
_FOUND_S = 3600.0

Upstream = Callable[[], AbstractAsyncContextManager[BlobStream]]
"""Opens the stream from upstream. Called at most once."""


Published = Callable[[Kind, str, Digest, int], None]
"""Records that a registry has given content to one of its repositories: kind, registry, digest, bytes."""


class ObjectReader:
    """Opens streams of blobs from the bucket, or from upstream if the bucket has none.

    Args:
        uses: told what is read.
        received: counts the bytes of blobs.
        published: told what a registry has published, by those who have uploaded it.
        may_delete: delete objects that are wrong.

    Attributes:
        scopes: the scopes of registries without an account; see `mirror.core.scope.scope_of`.
        redirects: sends clients to the bucket; None if none is to be sent.
    """

    def __init__(
        self, bucket: Bucket, uses: UseReport, received: Callable[[float], None], published: Published, *, may_delete: bool
    ) -> None:
        self.scopes: Mapping[str, str] = {}
        self.redirects: ObjectRedirects | None = None
        self._published = published
        self.bucket = bucket
        self._uses = uses
        self._received = received
        self._may_delete = may_delete
        self._streams = asyncio.Semaphore(_MAX_STREAMS)
        self._avoided: BoundedCache[Digest, bool] = BoundedCache(_MAX_BLOBS)
        # The blobs of which bytes came from the bucket.
        self._sent: BoundedCache[Digest, bool] = BoundedCache(_MAX_BLOBS)
        self._found: BoundedCache[Digest, bool] = BoundedCache(_MAX_BLOBS)
        # What is to be done about objects, behind the answers to clients.
        self._news: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue(_MAX_NEWS)

    @property
    def is_up(self) -> bool:
        """Whether the bucket answers, as far as is known."""
        return self.bucket.is_up

    def note_use(self, digest: Digest) -> None:
        """Note that a blob is fetched for a client, from wherever."""
        self._uses.note(digest, time.time())

    @contextlib.asynccontextmanager
    async def blob(self, wanted: BlobRange, upstream: Upstream) -> AsyncIterator[BlobStream]:
        """Open a stream of a range of a blob. Raises like `mirror.download.source.Source.open`."""
        async with AsyncExitStack() as stack:
            found = await self._open(wanted, stack)
            if found is None:
                yield await stack.enter_async_context(upstream())
                return
            self._sent.put(wanted.digest, True)
            self._note_found(wanted.digest, found.size)
            self._note_published("blob", wanted.repository, wanted.digest, found.size, found.metadata)
            try:
                yield _Counted(found, self._received)
            except UpstreamError as error:
                self._avoid(wanted.digest, _BROKEN_S)
                # The next attempt begins at once, with upstream.
                raise error.with_alternative() from error

    async def manifest(self, repository: Repository, digest: Digest) -> Manifest | None:
        """Read a manifest, and verify it; None if the bucket has none, or a wrong one."""
        if self._avoids(digest):
            return None
        key = manifest_key(digest)
        try:
            found = await self.bucket.read(key, MAX_MANIFEST_BYTES)
        except UpstreamError as error:
            self._note_failure(digest, error)
            return None
        try:
            manifest = parse_manifest(found.data, found.content_type, digest)
        except InvalidInput as error:
            self._note_wrong(digest, key, str(error))
            return None
        if manifest.kind is ManifestKind.SCHEMA1:
            # The digest of schema 1 is not that of its bytes, so nothing would verify them.
            return None
        self.note_use(digest)
        self._note_found(digest, len(found.data))
        self._note_published("manifest", repository, digest, len(found.data), found.metadata)
        return manifest

    async def learn_published(self, repository: Repository, digest: Digest) -> None:
        """Record whether the registry of a repository has published a blob, without reading it."""
        with contextlib.suppress(UpstreamError):
            async with self.bucket.open(blob_key(digest), 0, 1) as found:
                self._note_published("blob", repository, digest, found.size, found.metadata)

    async def tag(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """Read what a tag of a registry without an account named last; None if the bucket does not say."""
        scope = self.scopes.get(repository.registry)
        if scope is None:
            return None
        return await self._tag(tag_key(scope, repository, tag))

    async def tags(self, repository: Repository, most: int) -> AsyncIterator[tuple[Tag, TagRecord]]:
        """Yield what the tags of a repository named last, the latest records first, at most so many; see `tag`."""
        scope = self.scopes.get(repository.registry)
        if scope is None:
            return
        prefix, latest = tags_of(scope, repository), list[ListedObject]()
        with contextlib.suppress(UpstreamError):
            async for page in self.bucket.pages(prefix):
                # Not of the repositories whose names begin with this one.
                found = [one for one in page if one.key.rpartition("/")[0] == prefix]
                latest = heapq.nlargest(most, latest + found, key=lambda listed: listed.written)
        for one in latest:
            record = await self._tag(one.key)
            with contextlib.suppress(InvalidInput):
                if record is not None:
                    yield Tag.parse(one.key.rpartition("/")[2].removesuffix(".json")), record

    async def _tag(self, key: str) -> TagRecord | None:
        try:
            found = await self.bucket.read(key, MAX_TAG_BYTES)
            return read_tag(found.data, time.time())
        except UpstreamError:
            return None
        except InvalidInput as error:
            log.error("object_wrong", key=key, cause=str(error), consequence="it is not used")
            return None

    def penalize(self, digest: Digest) -> bool:
        """Read a blob no more whose bytes were wrong, and delete the object; False if none of them came from the bucket."""
        if self._sent.pop(digest) is None:
            return False
        self._note_wrong(digest, blob_key(digest), "its bytes have another digest")
        return True

    async def run(self) -> None:
        """Record what was found, and delete wrong objects, until cancelled."""
        while True:
            work = await self._news.get()
            with contextlib.suppress(UpstreamError):
                await work()

    async def _open(self, wanted: BlobRange, stack: AsyncExitStack) -> ObjectStream | None:
        """Open an object; None if it is not to be used, or cannot be."""
        digest = wanted.digest
        if self._avoids(digest):
            return None
        async with AsyncExitStack() as own:
            try:
                async with asyncio.timeout(_TURN_S):
                    await own.enter_async_context(self._streams)
                found = await own.enter_async_context(self.bucket.open(blob_key(digest), wanted.start, wanted.stop))
            except TimeoutError:
                return None
            except UpstreamError as error:
                self._note_failure(digest, error)
                return None
            if wanted.size is not None and found.size != wanted.size:
                # The manifest that names the size may be wrong as well. An object that is cut off is replaced by the next upload.
                self._forget(digest)
                log.warning("object_of_other_size", digest=str(digest), size=found.size, named=wanted.size)
                return None
            stack.push_async_exit(own.pop_all())
            return found

    def _note_published(self, kind: Kind, repository: Repository, digest: Digest, size: int, metadata: Mapping[str, str]) -> None:
        scope = self.scopes.get(repository.registry)
        if scope is not None and scope in metadata.get(SCOPES, "").split(","):
            self._published(kind, repository.registry, digest, size)

    def _note_wrong(self, digest: Digest, key: str, cause: str) -> None:
        log.error("object_wrong", digest=str(digest), key=key, cause=cause, consequence="it is fetched from upstream")
        self._avoid(digest, _WRONG_S)
        self._forget(digest)
        if self._may_delete:
            self._do(partial(self.bucket.delete, key))

    def _note_found(self, digest: Digest, size: int) -> None:
        now = time.monotonic()
        if self._found.get(digest, now) is None:
            self._found.put(digest, True, expires=now + _FOUND_S)
            self._do(partial(self._uses.facts.note_present, digest, size))

    def _note_failure(self, digest: Digest, error: UpstreamError) -> None:
        if isinstance(error, ObjectAbsent):
            self._forget(digest)

    def _forget(self, digest: Digest) -> None:
        self._found.pop(digest)
        self._do(partial(self._uses.facts.withdraw, [digest]))

    def _do(self, work: Callable[[], Awaitable[None]]) -> None:
        with contextlib.suppress(asyncio.QueueFull):
            self._news.put_nowait(work)

    def _avoids(self, digest: Digest) -> bool:
        return self._avoided.get(digest, time.monotonic()) is not None

    def _avoid(self, digest: Digest, seconds: float) -> None:
        self._avoided.put(digest, True, expires=time.monotonic() + seconds)


class _Counted:
    """A stream from the bucket whose bytes are counted."""

    def __init__(self, stream: ObjectStream, received: Callable[[float], None]) -> None:
        self.start, self.size, self.is_partial = stream.start, stream.size, stream.is_partial
        self._stream = stream
        self._received = received

    async def blocks(self) -> AsyncIterator[bytes]:
        """See `ObjectStream.blocks`."""
        async with contextlib.aclosing(self._stream.blocks()) as blocks:
            async for block in blocks:
                self._received(len(block))
                yield block
