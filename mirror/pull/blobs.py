"""Blobs: from disk, from a download that is under way, or from a new one; only to whom upstream grants them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

from mirror.aio import UseCount
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.core.outcome import Outcome
from mirror.download.download import Download
from mirror.download.downloads import Downloads
from mirror.download.reader import ArrivingBody, Body, HeldBody
from mirror.download.source import BlobStream
from mirror.errors import UpstreamAnswer
from mirror.flights import Flights
from mirror.pull.context import Context
from mirror.pull.holdings import Holdings
from mirror.pull.integrity import IntegrityChecks
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
    """The bytes of a blob by way of one repository."""

    registry: Registry
    path: str
    digest: Digest
    in_use: UseCount
    size: ExpectedSize = field(compare=False)

    def open(self, start: int, stop: int | None) -> AbstractAsyncContextManager[BlobStream]:
        return self.registry.blob(self.path, self.digest, start, stop, self.size)

    def held(self) -> AbstractContextManager[None]:
        return self.in_use.hold()

    def distrust(self) -> None:
        self.registry.distrust(self.digest)


class Blobs:
    """Answers for blobs."""

    def __init__(self, context: Context, holdings: Holdings, downloads: Downloads) -> None:
        self._context = context
        self._holdings = holdings
        self._downloads = downloads
        self._grants: Flights[int | None] = Flights(context.in_use)
        self._integrity = IntegrityChecks(context.files, context.threads.write, context.in_use)

    async def get(self, repository: Repository, digest: Digest) -> BlobAnswer:
        """The blob, as soon as its size is known.

        Raises:
            UpstreamAnswer: upstream does not have it or does not grant it to this repository.
            UpstreamError: it is not held, and upstream could not be asked.
        """
        return await self._answer(repository, digest, for_store=False)

    async def _answer(self, repository: Repository, digest: Digest, *, for_store: bool) -> BlobAnswer:
        context = self._context
        expected = ExpectedSize(partial(context.index.parts.size_named, "blob", repository, digest))
        source = _UpstreamSource(context.registry(repository), repository.path, digest, context.in_use, expected)
        if not self._holdings.may_serve_blob(repository, digest) and self._is_around(digest):
            self._holdings.refuse_absent("blob", repository, digest)
            await self._ask(repository, digest)
        while True:
            # From here to the end of the download's start there is no await: hit, join or start is one decision.
            held = self._context.files.open(digest)
            if held is not None:
                try:
                    held = await self._vouched(repository, digest, held, None if for_store else _CHECK_TIMEOUT_S)
                except TimeoutError:
                    return await self._past_the_store(source)
                if held is None:
                    continue
                self._context.usage.blob(digest, self._context.clock())
                return BlobAnswer(digest, held.size, HeldBody(held, self._context.threads.serve), Outcome.HIT)
            download, outcome = self._joined_or_started(repository, digest, source)
            body = ArrivingBody(download, for_store=for_store)
            try:
                size = await body.sized()
                await self._holdings.learn_blob(repository, digest, size)
            except UpstreamAnswer as error:
                await body.close()
                # Another repository's no is none for this one, which is then asked itself.
                if download.source == source:
                    await self._holdings.remember_absent("blob", repository, digest, error)
                    raise
            except BaseException:
                await body.close()
                raise
            else:
                return BlobAnswer(digest, size, body, outcome)

    async def head(self, repository: Repository, digest: Digest) -> tuple[int, Outcome]:
        """The size in bytes; a blob that is not around stays so.

        Raises:
            UpstreamAnswer, UpstreamError: like `get`.
        """
        if not self._is_around(digest):
            self._holdings.refuse_absent("blob", repository, digest)
            size = await self._ask(repository, digest)
            if size is not None:
                return size, Outcome.MISS
        answer = await self.get(repository, digest)
        await answer.body.close()
        return answer.size, answer.outcome

    async def bring(self, repository: Repository, digest: Digest) -> int:
        """Have the blob held before a client asks for it; returns the bytes that had to be fetched, 0 if it was held.

        The download goes on if whoever asked for it is cancelled.

        Raises:
            UpstreamAnswer, UpstreamError: like `get`.
            StorageError: the store cannot take it.
        """
        answer = await self._answer(repository, digest, for_store=True)
        try:
            return answer.size if await answer.body.stored() else 0
        finally:
            await answer.body.close()

    def received(self, digest: Digest) -> int:
        """Bytes that have arrived of a blob that is under way."""
        download = self._downloads.find(digest)
        return download.received if download is not None else 0

    async def close(self) -> None:
        """Stop asking upstream, and doubting what is held."""
        await self._grants.close()
        await self._integrity.close()

    def _joined_or_started(self, repository: Repository, digest: Digest, source: _UpstreamSource) -> tuple[Download, Outcome]:
        download = self._downloads.find(digest)
        if download is not None:
            return download, Outcome.JOINED
        self._holdings.refuse_absent("blob", repository, digest)
        self._downloads.refuse_failing(source)
        return self._downloads.start(digest, source), Outcome.MISS

    async def _vouched(self, repository: Repository, digest: Digest, held: HeldBlob, timeout: float | None) -> HeldBlob | None:
        """A held blob if upstream has said its length, or else if its digest matches; None if it does not.

        Raises:
            TimeoutError: the digest is not known yet.
            StorageError: it has been damaged, and cannot be removed.
        """
        if self._holdings.blob_size(repository, digest) == held.size:
            return held
        try:
            intact = await self._integrity.is_intact(digest, held.size, timeout)
        except BaseException:
            held.close()
            raise
        if intact:
            await self._holdings.learn_blob(repository, digest, held.size)
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

    def _is_around(self, digest: Digest) -> bool:
        """Whether bytes of it could be served before upstream was asked."""
        return (
            self._context.files.size(digest) is not None
            or self._downloads.find(digest) is not None
            or self._downloads.has_partial(digest)
        )

    async def _ask(self, repository: Repository, digest: Digest) -> int | None:
        """Have upstream grant the blob to the asking repository; returns its size if upstream told."""
        key = (self._context.scope(repository), digest)
        size, _ = await self._grants.run(key, lambda: self._head(repository, digest))
        return size

    async def _head(self, repository: Repository, digest: Digest) -> int | None:
        try:
            size = await self._context.registry(repository).head_blob(repository.path, digest)
        except UpstreamAnswer as error:
            await self._holdings.remember_absent("blob", repository, digest, error)
            raise
        if size is not None:
            await self._holdings.learn_blob(repository, digest, size)
        return size
