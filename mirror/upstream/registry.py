"""The client of one registry: its requests are those of the OCI distribution specification."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import TypeVar

import aiohttp

from mirror import spans
from mirror.aio import on_bytes
from mirror.core import errors
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.manifest import MAX_MANIFEST_BYTES, Manifest, parse_manifest
from mirror.core.media import ALL_MANIFEST_TYPES, UPSTREAM_ACCEPT, strip_parameters
from mirror.core.names import Reference
from mirror.errors import (
    DigestMismatch,
    MethodRefused,
    Offline,
    UpstreamBusy,
    UpstreamError,
    UpstreamFailing,
    UpstreamProtocolError,
)
from mirror.upstream.attempt import Attempt, UpstreamRequest
from mirror.upstream.blob import ExpectedSize, UpstreamBlob
from mirror.upstream.connections import withdrawable
from mirror.upstream.exchange import Exchange
from mirror.upstream.upstream import Upstream, Work

T = TypeVar("T")

_MAX_LIST_BYTES = 8 << 20
# Until the outcome of a request: clients give up after 30 s.
_TIMEOUT_S = 20.0
# Before the one upstream that could be asked is asked once more: a restart of its proxy may take as long.
_RETRY_PAUSE_S = 0.25


@dataclass(frozen=True)
class ManifestHead:
    """The headers of a manifest; each may be missing.

    Attributes:
        size: bytes.
    """

    digest: Digest | None
    media_type: str | None
    size: int | None


@dataclass(frozen=True)
class Listing:
    """A list passed through from upstream: of tags or of referrers.

    Attributes:
        links: the values of its Link headers.
        filters: the value of OCI-Filters-Applied, if any.
    """

    body: bytes
    links: tuple[str, ...]
    filters: str | None


class Registry:
    """A registry with its upstreams, which are asked in order.

    A registry without upstreams is offline: each request raises Offline.

    Attributes:
        private: it is used with an account.

    Args:
        reserve: pulls of the pull limit that are kept for clients.
    """

    def __init__(self, name: str, upstreams: list[Upstream], *, private: bool = False, reserve: int = 0) -> None:
        self.name = name
        self.private = private
        self._reserve = reserve
        self.upstreams = upstreams
        for upstream in upstreams:
            upstream.health.alone = len(upstreams) == 1

    @property
    def is_offline(self) -> bool:
        """Whether nothing is ever asked."""
        return not self.upstreams

    def refuse_offline(self) -> None:
        """Raise Offline if nothing is ever asked."""
        if self.is_offline:
            raise Offline(f"{self.name} is offline here, so what is not held cannot be fetched")

    @property
    def received(self) -> int:
        """Bytes of bodies that its upstreams have sent so far."""
        return sum(upstream.health.received for upstream in self.upstreams)

    async def manifest(self, repository: str, reference: Reference) -> Manifest:
        """Fetch a manifest; its bytes are verified against the reference if that is a digest, else against upstream's header.

        Raises:
            DigestMismatch: the bytes have another digest.
            UpstreamError, UpstreamRefusal: see those.
        """
        expected = reference if isinstance(reference, Digest) else None
        request = UpstreamRequest("manifest", repository, f"manifests/{reference}", headers={"Accept": UPSTREAM_ACCEPT})

        async def get(exchange: Exchange) -> Manifest:
            response = await exchange.response()
            raw = await exchange.content(response, MAX_MANIFEST_BYTES)
            digest = expected or _digest(response)
            try:
                return await on_bytes(len(raw), None, parse_manifest, raw, response.headers.get("Content-Type"), digest)
            except errors.DigestMismatch as error:
                raise DigestMismatch(f"{exchange.name}, manifest {reference}: {error}") from error
            except InvalidInput as error:
                raise UpstreamProtocolError(f"{exchange.name}, manifest {reference}: {error}") from error

        return await self._value(request, get)

    async def head_manifest(self, repository: str, reference: Reference) -> ManifestHead:
        """Fetch the headers of a manifest, which Docker Hub does not count as a pull. Raises like `manifest`."""
        request = UpstreamRequest("manifest", repository, f"manifests/{reference}", "HEAD", {"Accept": UPSTREAM_ACCEPT})

        async def head(exchange: Exchange) -> ManifestHead:
            response = await exchange.response()
            media_type = strip_parameters(response.headers.get("Content-Type", ""))
            # Another type would reach the client, which may be a browser.
            known = media_type if media_type in ALL_MANIFEST_TYPES else None
            return ManifestHead(_digest(response), known, _length(response))

        try:
            return await self._value(request, head)
        except MethodRefused:
            return ManifestHead(None, None, None)

    async def head_blob(self, repository: str, digest: Digest) -> int | None:
        """Ask whether upstream grants a blob; returns its size in bytes, None if the response has none."""
        request = UpstreamRequest("blob", repository, f"blobs/{digest}", "HEAD")

        async def head(exchange: Exchange) -> int | None:
            response = await exchange.response()
            if response.content_type == "text/html":
                raise UpstreamProtocolError(f"{response.url.host} answers with a page where {digest} was asked for")
            return _length(response)

        return await self._value(request, head)

    async def listing(self, kind: str, repository: str, rest: str, query: str) -> Listing:
        """Fetch a list of tags or referrers unchanged; `query` is encoded, and is sent unchanged."""
        request = UpstreamRequest(kind, repository, rest, headers={"Accept": "application/json, */*"}, query=query)

        async def get(exchange: Exchange) -> Listing:
            response = await exchange.response()
            body = await exchange.content(response, _MAX_LIST_BYTES)
            links = tuple(response.headers.getall("Link", []))
            return Listing(body, links, response.headers.get("OCI-Filters-Applied"))

        return await self._value(request, get)

    @contextlib.asynccontextmanager
    async def blob(
        self, repository: str, digest: Digest, start: int, stop: int | None, size: ExpectedSize | None = None
    ) -> AsyncIterator[UpstreamBlob]:
        """Open the stream of a blob from `start` on.

        Args:
            size: checks the size of the blob that a response announces.

        Raises:
            UpstreamError, UpstreamRefusal: see those; the former also while the stream is read.
            ConnectionWithdrawn: at any time; a more urgent request needs the connection.
        """
        headers = {}
        if start or stop is not None:
            headers["Range"] = f"bytes={start}-{'' if stop is None else stop - 1}"
        request = UpstreamRequest("blob", repository, f"blobs/{digest}", headers=headers)

        async def open_blob(exchange: Exchange) -> UpstreamBlob:
            response = await exchange.response()
            body = exchange.body(response)
            # Before what may refuse the response: from here on it is received into a buffer, also while the connection ends.
            exchange.resources.push(lambda error, *_: body.close(is_used=error is not None))
            blob = UpstreamBlob(response, body, digest, start, exchange.received)
            if size is not None and not size.accepts(blob.size):
                raise UpstreamProtocolError(
                    f"{response.url.host} sends {blob.size} bytes for {digest}; its manifest says otherwise"
                )
            return blob

        async with withdrawable():
            deadline = asyncio.get_running_loop().time() + _TIMEOUT_S
            upstream, attempt = (await self._attempts(request, open_blob, deadline))[-1]
            blob = attempt.value()
            # Around the response, whose end is where the client's exceptions are translated.
            with self._noted_body(upstream, request):
                async with attempt.resources:
                    with spans.part("receive blob"):
                        yield blob

    @contextlib.contextmanager
    def _noted_body(self, upstream: Upstream, request: UpstreamRequest) -> Iterator[None]:
        """Note how the body of a blob ends; its error decides whether another upstream is preferred."""
        try:
            yield
        except UpstreamError as error:
            upstream.note_body(request, error)
            if any(other.health.is_sound for other in self.upstreams if other is not upstream):
                raise error.with_alternative() from error
            raise
        upstream.note_body(request, None)

    def penalize(self, digest: Digest) -> None:
        """Note wrong bytes of a blob: the upstream that is asked first for blobs is asked last, for a while.

        An upstream that is out of order was not asked, and cannot have delivered them.
        """
        order = self._blob_order()
        sound = [upstream for upstream in order if upstream.health.is_sound]
        for upstream in (sound or order)[:1]:
            upstream.penalize(digest)

    def next_upstream(self, kind: str, method: str) -> Upstream | None:
        """The upstream that a request would be sent to first now; None if none may be asked."""
        candidates = self._blob_order() if kind == "blob" else self.upstreams
        return next((upstream for upstream in candidates if upstream.health.admits(kind, method)), None)

    def has_plenty_of_pulls(self) -> bool:
        """Whether the pull limit is unknown or far away, so that a GET of a manifest need not be saved by a HEAD before it."""
        healths = [upstream.health for upstream in self.upstreams]
        return all(health.pull_quota.has_plenty(self._reserve, health.clock()) for health in healths)

    def allows_background(self, reserve: int) -> bool:
        """Whether background work may ask: an upstream is in order, and has more than `reserve` pulls left."""
        return self.obstacle(reserve) is None

    def obstacle(self, reserve: int) -> str | None:
        """Why background work may not ask; None if it may."""
        if self.is_offline:
            return f"{self.name} is offline here"
        sound = next((upstream.health for upstream in self.upstreams if upstream.health.serves_background), None)
        if sound is None:
            return f"{self.name} cannot be asked for now: {self.upstreams[0].name} is {self.upstreams[0].state}"
        if sound.pull_quota.allows_background(reserve, sound.clock()):
            return None
        remaining = sound.pull_quota.remaining(sound.clock())
        if remaining is None or remaining > reserve:
            return f"{self.name} limits the rate of pulls, and is not asked for now"
        return f"{self.name} leaves {remaining} pulls, and sync.reserve keeps {reserve} for clients"

    async def close(self) -> None:
        """Stop probing upstreams."""
        for upstream in self.upstreams:
            await upstream.close()

    async def _value(self, request: UpstreamRequest, work: Work[T]) -> T:
        """The result of a request after which nothing stays open.

        If only one upstream could be asked, and its next response may well be another, it is asked once more.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _TIMEOUT_S
        attempts = await self._attempts(request, work, deadline)
        attempt = attempts[-1][1]
        asked = [(upstream, error) for upstream, each in attempts if (error := _failure(each)) is not None and error.sent]
        in_time = deadline - loop.time() > 2 * _RETRY_PAUSE_S
        if len(asked) == 1 and not _is_over(attempt) and in_time and _may_retry(request, *asked[0]):
            await asyncio.sleep(_RETRY_PAUSE_S)
            again = await asked[0][0].attempt(request, work, deadline - loop.time())
            error = _failure(again)
            attempt = again if error is None or error.sent else attempt
        async with attempt.resources:
            return attempt.value()

    async def _attempts(self, request: UpstreamRequest, work: Work[T], deadline: float) -> list[tuple[Upstream, Attempt[T]]]:
        """Ask the upstreams in order until one answers; the last attempt is the outcome.

        An upstream that is known to be out of order costs no time. Each of the others gets a share of the time that clients wait.
        """
        self.refuse_offline()
        loop, upstreams = asyncio.get_running_loop(), self._in_order(request)
        attempts: list[tuple[Upstream, Attempt[T]]] = []
        for number, upstream in enumerate(upstreams):
            share = (deadline - loop.time()) / (len(upstreams) - number)
            attempts.append((upstream, await upstream.attempt(request, work, share)))
            if _is_over(attempts[-1][1]):
                break
        return attempts

    def _in_order(self, request: UpstreamRequest) -> list[Upstream]:
        """The upstreams as configured; for blobs, those whose bodies broke lately come last."""
        return self._blob_order() if request.kind == "blob" else self.upstreams

    def _blob_order(self) -> list[Upstream]:
        return sorted(self.upstreams, key=lambda upstream: upstream.health.doubted_until)


def _is_over(attempt: Attempt[T]) -> bool:
    """Whether no other upstream is asked: this one has answered, or all connections, which all upstreams share, are in use."""
    return attempt.is_answer or isinstance(attempt.error, UpstreamBusy)


def _failure(attempt: Attempt[T]) -> UpstreamError | None:
    return attempt.error if isinstance(attempt.error, UpstreamError) else None


def _may_retry(request: UpstreamRequest, upstream: Upstream, error: UpstreamError) -> bool:
    """Whether to ask once more after an error: not if that may cost a second pull where few are left."""
    health = upstream.health
    uncounted = isinstance(error, UpstreamFailing) or health.pull_quota.allows_second(
        request.kind, request.method, health.clock()
    )
    return error.transient and uncounted


def _digest(response: aiohttp.ClientResponse) -> Digest | None:
    text = response.headers.get("Docker-Content-Digest")
    try:
        return Digest.parse(text) if text else None
    except InvalidInput as error:
        raise UpstreamProtocolError(f"{response.url.host} sends a Docker-Content-Digest that is none: {error}") from error


def _length(response: aiohttp.ClientResponse) -> int | None:
    text = response.headers.get("Content-Length", "")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else None
