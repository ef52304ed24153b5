"""Blobs: from disk, from a download that is under way, or from a new one; only to whom upstream grants them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial

from mirror import demand
from mirror.aio import SingleFlight
from mirror.cache.access_index import UNKNOWN_SIZE
from mirror.cache.content import CachedContent
from mirror.cache.context import Context
from mirror.cache.integrity import IntegrityChecks
from mirror.cache.pull_policy import PullPolicy
from mirror.core.counts import ClientCounts
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.core.outcome import Outcome
from mirror.core.urgency import Urgency
from mirror.download.download import Download
from mirror.download.downloads import Downloads
from mirror.download.reader import Body, HeldBody, StreamingBody
from mirror.download.source import BlobStream
from mirror.errors import UpstreamRefusal
from mirror.storage.blobs import HeldBlob
from mirror.upstream.blob import ExpectedSize
from mirror.upstream.registry import Registry

# Until a held blob that nobody vouches for has been hashed: some gigabytes from a good disk. Then upstream is asked for it.
_CHECK_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class BlobAnswer:
    """A blob that may be read.

    Attributes:
        body: to be closed by whoever gets this.
    """

    digest: Digest
    size: int
    body: Body
    outcome: Outcome


@dataclass(frozen=True)
class _UpstreamSource:
    """The bytes of a blob by way of one repository. That upstream gives them there is recorded when it does."""

    registry: Registry
    repository: Repository
    digest: Digest
    context: Context = field(compare=False)
    size: ExpectedSize = field(compare=False)

    @contextlib.asynccontextmanager
    async def open(self, start: int, stop: int | None) -> AsyncIterator[BlobStream]:
        async with self.registry.blob(self.repository.path, self.digest, start, stop, self.size) as stream:
            self.context.access.record_grant("blob", self.repository, self.digest, stream.size)
            yield stream

    def held(self) -> contextlib.AbstractContextManager[None]:
        return self.context.in_use.hold()

    def penalize(self) -> None:
        self.registry.penalize(self.digest)


class Blobs:
    """Answers for blobs."""

    def __init__(self, context: Context, content: CachedContent, downloads: Downloads, pull_policy: PullPolicy) -> None:
        self._pull_policy = pull_policy
        self._context = context
        self._content = content
        self._downloads = downloads
        # No failure is remembered: where a right is not known, the next question counts.
        self._questions: SingleFlight[int | None] = SingleFlight(context.in_use)
        self._integrity = IntegrityChecks(context.store.files, context.store.threads.write, context.in_use)

    async def get(self, repository: Repository, digest: Digest) -> BlobAnswer:
        """The blob, as soon as its size is known.

        Raises:
            UpstreamRefusal: upstream does not have it or does not grant it to this repository.
            UpstreamError: it is not held, and upstream could not be asked.
            TooManyDownloads: it is not held, and the client has begun as many downloads as it may.
        """
        return await self._answer(repository, digest, Urgency.CLIENT)

    async def _answer(self, repository: Repository, digest: Digest, urgency: Urgency) -> BlobAnswer:
        context = self._context
        expected = ExpectedSize(partial(context.access.size_named, repository, digest))
        source = _UpstreamSource(context.registry(repository), repository, digest, context, expected)
        while True:
            authorized = self._content.is_authorized("blob", repository, digest)
            if not authorized and self._is_around(digest, source):
                self._content.raise_if_negative("blob", repository, digest)
                await self._ask(repository, digest)
                authorized = True
            # From here to the end of the download's start there is no await: hit, join or start is one decision.
            held = context.store.files.open(digest) if authorized else None
            if held is not None:
                answer = await self._held(source, held, None if urgency is not Urgency.CLIENT else _CHECK_TIMEOUT_S)
                if answer is not None:
                    return answer
                continue
            client = demand.client.get() if urgency is Urgency.CLIENT else None
            download, outcome = self._joined_or_started(repository, digest, source, client)
            if download is None:
                assert client is not None
                await self._downloads.shares.turn(client)
                continue
            body = StreamingBody(download, urgency)
            size = await self._sized(repository, digest, body, sole=download.source == source)
            if size is not None:
                await self._authorize(repository, digest, body)
                return BlobAnswer(digest, size, body, outcome)

    async def _held(self, source: _UpstreamSource, held: HeldBlob, timeout: float | None) -> BlobAnswer | None:
        """The answer with a held blob, or past the store if nobody can vouch for it in time; None if it is wrong."""
        context, digest = self._context, source.digest
        try:
            vouched = await self._vouched(source.repository, digest, held, timeout)
        except TimeoutError:
            return await self._past_the_store(source)
        if vouched is None:
            return None
        context.usage.note_blob(digest, context.clock())
        return BlobAnswer(digest, vouched.size, HeldBody(vouched, context.store.threads.serve), Outcome.HIT)

    async def _authorize(self, repository: Repository, digest: Digest, body: Body) -> None:
        """Have upstream asked unless it has granted the blob: another process may have fetched it, for another repository."""
        if self._content.is_authorized("blob", repository, digest):
            return
        try:
            await self._ask(repository, digest)
        except BaseException:
            await body.close()
            raise

    async def _sized(self, repository: Repository, digest: Digest, body: StreamingBody, *, sole: bool) -> int | None:
        """The size of what arrives; None if another repository was refused it, which says nothing about this one.

        Args:
            sole: it arrives by way of this repository.
        """
        try:
            size = await body.sized()
        except UpstreamRefusal as error:
            await body.close()
            if not sole:
                return None
            await self._content.cache_negative("blob", repository, digest, error)
            raise
        except BaseException:
            await body.close()
            raise
        return size

    async def head(self, repository: Repository, digest: Digest) -> tuple[int, Outcome]:
        """The size in bytes; a blob that is not around stays so.

        Raises:
            UpstreamRefusal, UpstreamError: like `get`.
        """
        if not self._is_around(digest):
            self._content.raise_if_negative("blob", repository, digest)
            size = await self._ask(repository, digest)
            if size is not None:
                return size, Outcome.MISS
        answer = await self.get(repository, digest)
        await answer.body.close()
        return answer.size, answer.outcome

    async def ensure_cached(self, repository: Repository, digest: Digest, urgency: Urgency) -> int:
        """Have the blob held before a client asks for it; returns the bytes that had to be fetched, 0 if it was held.

        The download goes on if whoever asked for it is cancelled.

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

    def bytes_received(self, digest: Digest) -> int:
        """Bytes that have arrived of a blob that is under way."""
        download = self._downloads.find(digest)
        return download.received if download is not None else 0

    async def close(self) -> None:
        """Stop asking upstream, and doubting what is held."""
        await self._questions.close()
        await self._integrity.close()

    def _joined_or_started(
        self, repository: Repository, digest: Digest, source: _UpstreamSource, client: ClientCounts | None
    ) -> tuple[Download | None, Outcome]:
        """The download of a blob; None if the client has as many under way as it may."""
        download = self._downloads.find(digest)
        if download is not None:
            return download, Outcome.JOINED
        self._content.raise_if_negative("blob", repository, digest)
        self._downloads.refuse_failing(source)
        share = self._downloads.shares.begin(client)
        return (None if share is None else self._downloads.start(digest, source, share)), Outcome.MISS

    async def _vouched(self, repository: Repository, digest: Digest, held: HeldBlob, timeout: float | None) -> HeldBlob | None:
        """A held blob if upstream has said its length, or else if its digest matches; None if it does not.

        Raises:
            TimeoutError: the digest is not known yet.
            StorageError: it has been damaged, and cannot be removed.
        """
        grant = self._content.grant("blob", repository, digest)
        if grant is not None and grant.size == held.size:
            return held
        try:
            intact = await self._integrity.is_intact(digest, held.size, timeout)
        except BaseException:
            held.close()
            raise
        if intact:
            if grant is not None:
                self._context.access.correct_size(repository, digest, grant, held.size)
            return held
        held.close()
        return None

    async def _past_the_store(self, source: _UpstreamSource) -> BlobAnswer:
        body = self._downloads.passthrough(source.digest, source)
        try:
            return BlobAnswer(source.digest, await body.sized(), body, Outcome.BYPASS)
        except BaseException:
            await body.close()
            raise

    def _is_around(self, digest: Digest, own: _UpstreamSource | None = None) -> bool:
        """Whether bytes of it could be served before upstream was asked.

        Args:
            own: by way of which upstream is being asked anyway: a download that comes from there has no right but its own.
        """
        download = self._downloads.find(digest)
        if download is not None:
            return download.source != own
        return self._context.store.files.size(digest) is not None or self._downloads.has_partial(digest)

    async def _ask(self, repository: Repository, digest: Digest) -> int | None:
        """Have upstream grant the blob to the asking repository; returns its size if upstream told."""
        size, _ = await self._questions.run((repository, digest), lambda: self._head(repository, digest))
        return size

    async def _head(self, repository: Repository, digest: Digest) -> int | None:
        try:
            size = await self._context.registry(repository).head_blob(repository.path, digest)
        except UpstreamRefusal as error:
            await self._content.cache_negative("blob", repository, digest, error)
            raise
        self._context.access.record_grant("blob", repository, digest, UNKNOWN_SIZE if size is None else size)
        return size
