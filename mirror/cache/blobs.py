"""Blobs: from the store, from a running download, or from a new one; only to repositories to which upstream grants them."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from mirror import demand, spans
from mirror.cache.access_index import UNKNOWN_SIZE
from mirror.cache.answers import BlobAnswer
from mirror.cache.blob_grants import BlobGrants
from mirror.cache.blob_redirects import BlobRedirects
from mirror.cache.blob_source import UpstreamSource
from mirror.cache.content import CachedContent
from mirror.cache.context import Context
from mirror.cache.integrity import IntegrityChecks
from mirror.cache.last_answers import LastAnswer
from mirror.cache.pull_policy import PullPolicy
from mirror.cache.recorded_grants import RecordedGrants
from mirror.cache.ungranted_body import UngrantedBody
from mirror.core.counts import ClientCounts
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.core.outcome import Outcome
from mirror.core.urgency import Urgency
from mirror.download.downloads import Downloads
from mirror.download.ingest import Ingest
from mirror.download.reader import HeldBody, StreamingBody
from mirror.errors import UpstreamError, UpstreamRefusal
from mirror.storage.blobs import CachedBlob

# Enough to hash some gigabytes on a good disk. After it the blob comes from upstream.
_CHECK_TIMEOUT_S = 5.0


class Blobs:
    """Answers for blobs.

    Attributes:
        redirects: sends clients to the bucket instead.
    """

    def __init__(
        self,
        context: Context,
        content: CachedContent,
        downloads: Downloads,
        pull_policy: PullPolicy,
        recorded: RecordedGrants,
    ) -> None:
        self._pull_policy = pull_policy
        self._context = context
        self._content = content
        self._downloads = downloads
        self._grants = BlobGrants(context, content, recorded)
        self.redirects = BlobRedirects(context, downloads, self._grants)
        self._integrity = IntegrityChecks(context.store.files, context.store.threads.write, context.in_use)

    async def get(self, repository: Repository, digest: Digest) -> BlobAnswer:
        """The blob, as soon as its size is known.

        Raises:
            UpstreamRefusal: upstream does not have it, or does not grant it to this repository.
            UpstreamError: it is not held, and upstream cannot be asked.
            TooManyDownloads: it is not held, and the client has reached its limit of downloads.
        """
        try:
            return await self._answer(repository, digest, Urgency.CLIENT)
        except UpstreamError as error:
            trouble = LastAnswer(None, self._context.clock(), str(error))
            self._context.last_answers.note_trouble(repository, digest, trouble)
            raise

    def granted_size(self, repository: Repository, digest: Digest) -> int | None:
        """The size of a blob that is known to be granted to a repository; None if no grant is known."""
        grant = self._content.grant("blob", repository, digest)
        return None if grant is None else grant.size

    def open_hit(self, repository: Repository, digest: Digest) -> BlobAnswer | None:
        """A HIT that waits for nothing; None unless the blob is granted, and held with its granted size.

        Raises:
            StorageError: no descriptor is left.
        """
        context, size = self._context, self.granted_size(repository, digest)
        held = None if size is None else context.store.files.open(digest)
        if held is None:
            return None
        if held.size != size:
            held.close()
            return None
        context.usage.note_blob(digest, context.clock())
        return BlobAnswer(digest, held.size, HeldBody(held, context.store.threads.serve), Outcome.HIT)

    def read_hit(self, digest: Digest, size: int, start: int, stop: int) -> bytes | None:
        """Read a part of a granted blob without waiting for the disk; None unless it is held with its granted size."""
        body = self._context.store.files.read_resident(digest, size, start, stop)
        if body is not None:
            self._context.usage.note_blob(digest, self._context.clock())
        return body

    async def head(self, repository: Repository, digest: Digest) -> tuple[int, Outcome]:
        """The size in bytes; starts no download of a blob of which nothing has arrived. Raises like `get`."""
        if not self._has_bytes(digest):
            self._content.raise_if_negative("blob", repository, digest)
            size = await self._grants.ask(repository, digest)
            if size is not None:
                return size, Outcome.MISS
        answer = await self.get(repository, digest)
        await answer.body.close()
        await self._grants.require(repository, digest)
        return answer.size, answer.outcome

    async def ensure_cached(self, repository: Repository, digest: Digest, urgency: Urgency) -> int:
        """Store a blob ahead of its clients; returns the bytes that were fetched, 0 if it was held.

        The download continues if the caller is cancelled.

        Raises:
            UpstreamRefusal, UpstreamError: like `get`.
            StorageError: the store cannot take it.
            PolicyDenied: a rule names it.
        """
        self._pull_policy.check_content(repository, digest)
        answer = await self._answer(repository, digest, urgency)
        try:
            return answer.size if await answer.body.stored() else 0
        finally:
            await answer.body.close()

    def open_for_node(self, repository: Repository, digest: Digest, urgency: Urgency) -> HeldBody | StreamingBody | None:
        """What another node of the cluster may read: the held blob, or one that this node is fetching.

        Starts no fetch, and checks no grant: the other node does. None if there is nothing.

        Args:
            repository: continues the fetch if the process that fetches it for this node dies.
        """
        held = self._held_body(digest)
        if held is not None:
            return held
        download = self._downloads.find(digest)
        if download is None and not self._context.is_lazy(repository) and self._downloads.is_driven(digest):
            download = self._downloads.start(digest, UpstreamSource.of(self._context, repository, digest))
        if download is None:
            # Another process may have committed it since.
            return self._held_body(digest)
        return StreamingBody(download, urgency, only_stored=True)

    def _held_body(self, digest: Digest) -> HeldBody | None:
        held = self._context.store.files.open(digest)
        return None if held is None else HeldBody(held, self._context.store.threads.serve)

    def bytes_received(self, digest: Digest) -> int:
        """The bytes that have arrived of a blob that is being fetched."""
        download = self._downloads.find(digest)
        return download.received if download is not None else 0

    def stop_background(self, digest: Digest) -> None:
        """Stop the download of a blob that only the resync has requested, if nobody waits for it any more."""
        download = self._downloads.find(digest)
        if download is not None and not download.readers and download.urgency is Urgency.SYNC:
            download.stop()

    async def close(self) -> None:
        """Cancel the requests to upstream and the integrity checks."""
        await self._grants.close()
        await self._integrity.close()

    # ---- hit, join or start

    async def _answer(self, repository: Repository, digest: Digest, urgency: Urgency) -> BlobAnswer:
        source = UpstreamSource.of(self._context, repository, digest)
        is_client = urgency is Urgency.CLIENT
        client = demand.client.get() if is_client else None
        while True:
            authorized = self._content.is_authorized("blob", repository, digest)
            if not authorized and self._has_bytes(digest, source):
                self._content.raise_if_negative("blob", repository, digest)
                await self._grants.ask(repository, digest)
                authorized = True
            if self._context.is_lazy(repository):
                source = replace(source, lazy_size=await self._lazy_size(repository, digest))
            answer: BlobAnswer | None = None
            choice = self._hit_join_or_start(source, client, authorized=authorized)
            if isinstance(choice, CachedBlob):
                answer = await self._serve_held(source, choice, _CHECK_TIMEOUT_S if is_client else None)
            elif choice is not None:
                download, outcome = choice
                answer = await self._serve_download(source, download, StreamingBody(download, urgency), outcome)
            else:
                assert client is not None
                await self._downloads.shares.wait(client)
            if answer is not None:
                return answer

    async def _lazy_size(self, repository: Repository, digest: Digest) -> int | None:
        """The size that a download of ranges needs in advance; None if it is not known, or if there is no need for it."""
        if self._context.store.files.size(digest) is not None or self._downloads.find(digest) is not None:
            return None
        size = self.granted_size(repository, digest)
        if size is None:
            # The response to the first range brings the grant.
            size = self._context.access.size_named(repository, digest)
        if size is None or size == UNKNOWN_SIZE:
            self._content.raise_if_negative("blob", repository, digest)
            size = await self._grants.ask(repository, digest)
        return size

    def _hit_join_or_start(
        self, source: UpstreamSource, client: ClientCounts | None, *, authorized: bool
    ) -> CachedBlob | tuple[Ingest, Outcome] | None:
        """Open the held blob, or join its download, or start one; None if the client has reached its limit of downloads.

        Not a coroutine: no other request runs between the look into the store and the start, so a blob has one download.
        """
        held = self._context.store.files.open(source.digest) if authorized else None
        if held is not None:
            return held
        download = self._downloads.find(source.digest)
        if download is not None:
            return download, Outcome.JOINED
        self._content.raise_if_negative("blob", source.repository, source.digest)
        if self._context.cluster is None and self._context.objects is None:
            # Nor do other nodes or a bucket have it.
            source.registry.refuse_offline()
        self._downloads.refuse_failing(source)
        share = self._downloads.shares.begin(client)
        return None if share is None else (self._downloads.start(source.digest, source, share), Outcome.MISS)

    def _has_bytes(self, digest: Digest, own: UpstreamSource | None = None) -> bool:
        """Whether bytes of a blob could be served before upstream grants it.

        Args:
            own: upstream is asked through this source anyway, so a download from it needs no other grant.
        """
        download = self._downloads.find(digest)
        if download is not None:
            return download.source != own
        return self._context.store.files.size(digest) is not None or self._downloads.has_partial(digest)

    # ---- held

    async def _serve_held(self, source: UpstreamSource, held: CachedBlob, timeout: float | None) -> BlobAnswer | None:
        """Answer with a held blob, or past the store if its check takes too long; None if it is damaged."""
        context, digest = self._context, source.digest
        try:
            if not await self._is_intact(source.repository, digest, held, timeout):
                held.close()
                return None
        except TimeoutError:
            held.close()
            return await self._serve_past_store(source)
        except BaseException:
            held.close()
            raise
        context.usage.note_blob(digest, context.clock())
        return BlobAnswer(digest, held.size, HeldBody(held, context.store.threads.serve), Outcome.HIT)

    async def _is_intact(self, repository: Repository, digest: Digest, held: CachedBlob, timeout: float | None) -> bool:
        """Whether a held blob has the size that upstream reported, or else matches its digest.

        Raises:
            TimeoutError: the check goes on.
            StorageError: the blob is damaged and cannot be deleted.
        """
        grant = self._content.grant("blob", repository, digest)
        if grant is not None and grant.size == held.size:
            return True
        if not await self._integrity.is_intact(digest, held.size, timeout):
            return False
        # Upstream may have revoked it meanwhile.
        grant = self._content.grant("blob", repository, digest)
        if grant is not None:
            self._context.access.correct_size(repository, digest, grant, held.size)
        return True

    async def _serve_past_store(self, source: UpstreamSource) -> BlobAnswer:
        body = self._downloads.passthrough(source.digest, source)
        try:
            return BlobAnswer(source.digest, await body.sized(), body, Outcome.BYPASS)
        except BaseException:
            await body.close()
            raise

    # ---- being fetched

    async def _serve_download(
        self, source: UpstreamSource, download: Ingest, body: StreamingBody, outcome: Outcome
    ) -> BlobAnswer | None:
        """Answer with a download, once upstream has granted the blob to this repository; closes the body if it raises.

        None if upstream refused the blob to another repository: that does not refuse it to this one.
        """
        repository, digest = source.repository, source.digest
        try:
            size = await self._granted_size(source, body, is_own=download.source == source)
            if size is not None and download.source == source and download.source.lazy_size is not None:
                return BlobAnswer(digest, size, self._ungranted(repository, digest, body), outcome)
            # Another process may fetch the blob through another repository.
            if size is not None:
                await self._grants.require(repository, digest)
        except BaseException:
            await body.close()
            raise
        if size is None:
            await body.close()
            return None
        return BlobAnswer(digest, size, body, outcome)

    def _ungranted(self, repository: Repository, digest: Digest, body: StreamingBody) -> UngrantedBody:
        require = partial(self._grants.require, repository, digest)
        return UngrantedBody(body, require, partial(self._content.cache_negative, "blob", repository, digest))

    async def _granted_size(self, source: UpstreamSource, body: StreamingBody, *, is_own: bool) -> int | None:
        """The size of a download; None if upstream refuses the blob to another repository, through which it is fetched."""
        try:
            with spans.wait("wait for the download"):
                return await body.sized()
        except UpstreamRefusal as error:
            if not is_own:
                return None
            await self._content.cache_negative("blob", source.repository, source.digest, error)
            raise
