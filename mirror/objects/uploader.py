"""Uploads to the bucket what the store has committed: behind every pull, in one process of the store, at a bounded rate."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import structlog

from mirror.aio import in_thread, on_descriptor, together
from mirror.core.byte_rate import ByteRate
from mirror.core.digest import Digest
from mirror.core.names import Repository, Tag
from mirror.core.retry import backoff
from mirror.errors import MirrorError, StorageError, UpstreamError
from mirror.objects.bucket import PART_BYTES, Bucket
from mirror.objects.calls import ObjectsUnavailable
from mirror.objects.facts import Claim, ObjectFacts
from mirror.objects.file_parts import Part, read_part
from mirror.objects.keys import LAYOUT, LAYOUT_KEY, SCOPES, blob_key, manifest_key, tag_key
from mirror.objects.owed import OwedKind, OwedUploads, blob_of, tag_of
from mirror.objects.tag_records import write_tag
from mirror.storage.blobs import CachedBlob
from mirror.storage.rows import Kind
from mirror.storage.store import Store
from mirror.throttled_log import ThrottledLog

log = structlog.get_logger(__name__)

_POLL_INTERVAL_S, _MAX_PAUSE_S = 1.0, 60.0
_COUNT_INTERVAL_S = 5.0
# Small objects at once; a large one has as many parts at once.
_AT_ONCE = 4
# A row whose file has not come within this time never gets one: the store has deleted it, or the process that wrote it has died.
_MISSING_S = 60.0
TURN_S = 60.0
"""Another node uploads what it has fetched within this time, or never."""
_STOP_TIMEOUT_S = 3.0
_MAX_SKIPPED = 10_000
# Between two parts of a large upload while clients are connected: an upload would take the processor from them for milliseconds.
_PAUSE_S, _PAUSE_POLL_S = 0.25, 0.02
# Clients that connect anew for each request count as connected in between.
_GONE_S = 0.1
# With more uploads owed they have to catch up, at full speed.
_MAX_PACED = 100
# S3 takes 2 KB of metadata.
_MAX_SCOPES = 10


class _Stopping(MirrorError):
    """The mirror stops in the middle of an upload; it is made again."""


@dataclass(frozen=True)
class _Upload:
    """An object that is to be written."""

    digest: Digest
    name: str
    attributes: dict[str, str]
    kind: Kind


class Uploader:
    """Makes owed uploads.

    Args:
        rate: of the uploads.
        facts: say who uploads what.

    Attributes:
        count: how many uploads are owed; 0 in processes that do not upload.
        min_size: blobs with fewer bytes are not uploaded.
        has_clients: tells whether clients are connected to any process of the mirror.
        scopes: the scopes of registries without an account; see `mirror.core.scope.scope_of`.
        written: called with the bytes of each object that is new in the bucket.
    """

    def __init__(self, bucket: Bucket, owed: OwedUploads, store: Store, rate: ByteRate, facts: ObjectFacts) -> None:
        self.count = self.min_size = 0
        self.written: Callable[[int], None] = lambda _: None
        self.has_clients: Callable[[], bool] = lambda: False
        self.scopes: Mapping[str, str] = {}
        self._bucket = bucket
        self._owed = owed
        self._store = store
        self._rate = rate
        self._facts = facts
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="objects")
        # By row: how often it has failed, and when it is tried again.
        self._failed: dict[str, tuple[int, float]] = {}
        self._is_marked = False
        self._clients_seen = float("-inf")
        # Large ones are uploaded one after the other, each in parts: that bounds the memory.
        self._large = asyncio.Lock()
        self._stopping = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._log = ThrottledLog(log)

    async def run(self) -> None:
        """Upload until cancelled. Of several processes of a store only one may."""
        # Records of tags do not wait for blobs: a purged tag must not come back in an outage of upstream.
        works = [self._count_all(), self._upload_all("tag"), self._upload_all("blob")]
        self._running = asyncio.get_running_loop().create_task(together(works))
        await self._running

    async def close(self) -> None:
        """End the running upload; what is owed is uploaded after the next start."""
        self._stopping.set()
        if self._running is not None:
            # The library leaves parts of an upload behind that is cancelled.
            await asyncio.wait([self._running], timeout=_STOP_TIMEOUT_S)
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        await asyncio.to_thread(self._threads.shutdown)
        self._owed.close()

    async def _count_all(self) -> None:
        while not self._stopping.is_set():
            self.count = await in_thread(self._threads, self._owed.count)
            await self._pause(_COUNT_INTERVAL_S)

    async def _upload_all(self, kind: OwedKind) -> None:
        failures = 0
        while not self._stopping.is_set():
            uploads = await self._upload_some(kind) if self._bucket.is_up else []
            failures = failures + 1 if uploads and not any(uploads) else 0
            if failures or not uploads:
                await self._pause(backoff(failures, base=_POLL_INTERVAL_S, cap=_MAX_PAUSE_S))

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _upload_some(self, kind: OwedKind) -> list[bool]:
        """Upload a few of what is owed; returns for each whether the bucket has not failed."""
        rows = await in_thread(self._threads, self._owed.due, kind, _AT_ONCE, self._is_skipped)
        if rows and not self._is_marked:
            await self._mark()
        return await asyncio.gather(*(self._upload_guarded(row) for row in rows))

    async def _mark(self) -> None:
        """Write which layout the bucket has."""
        self._is_marked = True
        try:
            await self._bucket.put(LAYOUT_KEY, LAYOUT, {"Content-Type": "text/plain"})
        except UpstreamError:
            self._is_marked = False

    async def _upload_guarded(self, row: str) -> bool:
        """Upload; False if the bucket fails."""
        try:
            tag = tag_of(row)
            await (self._upload_blob(row) if tag is None else self._upload_tag(row, *tag))
        except _Stopping:
            pass
        except (UpstreamError, StorageError, OSError) as error:
            self._skip(row, str(error))
            return not isinstance(error, UpstreamError)
        except Exception as error:
            # One that the library does not know how to upload must not be in the way of the others.
            log.exception("upload_failed", row=row)
            self._skip(row, str(error))
        return True

    async def _upload_tag(self, row: str, repository: Repository, tag: Tag) -> None:
        record = await in_thread(self._threads, self._store.index.tags.get, repository, tag)
        scope = self.scopes.get(repository.registry)
        if scope is not None and (record is None or record.denied):
            await self._bucket.delete(tag_key(scope, repository, tag))
        elif scope is not None and record is not None:
            attributes = {"Content-Type": "application/json"}
            await self._bucket.put(tag_key(scope, repository, tag), write_tag(record), attributes, replace=True)
        await self._done(row)

    async def _upload_blob(self, row: str) -> None:
        digest = blob_of(row)
        held = None if digest is None else await in_thread(self._threads, self._store.files.open, digest)
        if digest is None or held is None:
            if digest is None or await in_thread(self._threads, self._owed.is_older, row, _MISSING_S):
                await self._done(row)
            else:
                self._failed[row] = (0, time.monotonic() + _MISSING_S)
            return
        with contextlib.closing(held):
            is_done = await self._upload_held(row, digest, held)
        if is_done:
            await self._done(row)

    async def _upload_held(self, row: str, digest: Digest, held: CachedBlob) -> bool:
        """Upload a file, if this process is the one to do so; False if another node may still do it."""
        upload = await in_thread(self._threads, self._prepare, digest, held.size)
        if upload is None:
            return True
        async with self._large if held.size > PART_BYTES else contextlib.nullcontext():
            return await self._claim_and_put(row, upload, held)

    async def _claim_and_put(self, row: str, upload: _Upload, held: CachedBlob) -> bool:
        claim = await self._facts.claim(upload.digest, held.size)
        if claim is Claim.WAIT:
            self._failed[row] = (0, time.monotonic() + TURN_S)
            return False
        if claim is Claim.STORED:
            return True
        size = None
        try:
            await self._put(upload, held)
            size = held.size
        finally:
            await self._facts.release(upload.digest, size)
        return True

    def _prepare(self, digest: Digest, size: int) -> _Upload | None:
        """What an object is named and said to be; None if it is too small. In a thread."""
        manifests = self._store.index.manifests
        found = (manifests.get(repository, digest) for repository in manifests.holders(digest))
        record = next((record for record in found if record is not None), None)
        if record is None and size < self.min_size:
            return None
        kind: Kind = "blob" if record is None else "manifest"
        name = blob_key(digest) if record is None else manifest_key(digest)
        media_type = "application/octet-stream" if record is None else record.media_type
        grants = self._store.index.grants
        scopes = [scope for registry, scope in self.scopes.items() if grants.get(kind, registry, digest) is not None]
        published = {SCOPES: ",".join(scopes[:_MAX_SCOPES])} if scopes else {}
        return _Upload(digest, name, {"Content-Type": media_type, "rm-size": str(size), **published}, kind)

    async def _put(self, upload: _Upload, held: CachedBlob) -> None:
        if held.size > PART_BYTES:
            is_new = await self._bucket.size(upload.name) != held.size
            if is_new:
                async with contextlib.aclosing(self._parts(held)) as parts:
                    await self._bucket.put_parts(upload.name, parts, held.size, upload.attributes)
        else:
            is_new = await self._put_small(upload, await self._part(held, 0))
        if is_new:
            self.written(held.size)
            log.info("object_uploaded", digest=str(upload.digest), kind=upload.kind, size=held.size)

    async def _put_small(self, upload: _Upload, data: Part) -> bool:
        """Write a small object; False if it exists."""
        if await self._bucket.put(upload.name, data, upload.attributes):
            return True
        # The bucket answers the same if another upload is under way, which may fail. What exists may be cut off.
        if await self._bucket.size(upload.name) == len(data):
            return False
        if not await self._bucket.put(upload.name, data, upload.attributes, replace=True):
            raise ObjectsUnavailable(f"another upload of {upload.name} is under way")
        return True

    async def _parts(self, held: CachedBlob) -> AsyncGenerator[Part, None]:
        for start in range(0, held.size, PART_BYTES):
            if start:
                await self._give_way()
            yield await self._part(held, start)

    async def _give_way(self) -> None:
        """Leave the processor to clients for a moment, if any are or were just connected."""
        end = time.monotonic() + _PAUSE_S
        while (now := time.monotonic()) < end and self.count <= _MAX_PACED and not self._stopping.is_set():
            if self.has_clients():
                self._clients_seen = now
            elif now - self._clients_seen > _GONE_S:
                return
            await self._pause(_PAUSE_POLL_S)

    async def _part(self, held: CachedBlob, start: int) -> Part:
        """A part of a file, no sooner than the rate allows."""
        if self._stopping.is_set():
            raise _Stopping("the mirror stops")
        length = min(PART_BYTES, held.size - start)
        part = await on_descriptor(self._threads, held.file.fileno(), read_part, start, length)
        await asyncio.sleep(self._rate.spend(length, time.monotonic()))
        return part

    async def _done(self, row: str) -> None:
        self._failed.pop(row, None)
        await in_thread(self._threads, self._owed.delete, row)

    def _skip(self, row: str, cause: str) -> None:
        """Try the others first."""
        failures = self._failed.get(row, (0, 0.0))[0] + 1
        if len(self._failed) > _MAX_SKIPPED:
            self._failed.clear()
        self._failed[row] = failures, time.monotonic() + backoff(failures, base=1.0, cap=60.0, jitter=0.5)
        self._log.log("warning", "upload_failed", row=row, cause=cause, consequence="it is tried again")

    def _is_skipped(self, row: str) -> bool:
        return self._failed.get(row, (0, 0.0))[1] > time.monotonic()
