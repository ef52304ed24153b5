"""The body of a blob as it arrives from upstream, checked against the request."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

import aiohttp

from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.ranges import parse_content_range
from mirror.errors import UpstreamDisconnected, UpstreamProtocolError, UpstreamTooSlow
from mirror.upstream.receiver import Body, BodyEnded

# A body with fewer bytes in a window fails: it would hold a connection, and its clients, without end.
_MIN_WINDOW_BYTES, _WINDOW_S = 16 << 10, 60.0


class Pace:
    """Detects a stream that is too slow to be of use.

    Args:
        host: who sends it.
    """

    def __init__(self, host: str) -> None:
        self._host = host
        self._begun, self._count = time.monotonic(), 0

    def check(self, count: int) -> None:
        """Note bytes; raises UpstreamTooSlow if they come too slowly."""
        self._count += count
        elapsed = time.monotonic() - self._begun
        if elapsed > _WINDOW_S:
            if self._count < _MIN_WINDOW_BYTES:
                raise UpstreamTooSlow(f"{self._host} sent {self._count} bytes in {elapsed:.0f} s")
            self._begun, self._count = time.monotonic(), 0


class ExpectedSize:
    """The size of a blob by its manifest, until upstream contradicts it twice in the same way.

    A response of another length is most likely a web page, or a broken one, with status 200.

    Args:
        named: returns the size in bytes, None if no manifest is known that names the blob.
    """

    def __init__(self, named: Callable[[], int | None]) -> None:
        self._named = named
        self._contradiction: int | None = None
        self._accepted: int | None = None

    def accepts(self, size: int) -> bool:
        """Whether to accept a response that announces so many bytes."""
        if size == self._accepted or self._named() in (None, size):
            return True
        # Manifests can be wrong, too; the digest decides in the end.
        if size == self._contradiction:
            self._accepted = size
        self._contradiction = size
        return size == self._accepted


class UpstreamBlob:
    """A successful response to a request for a blob or a range of it.

    Attributes:
        start: position of the first byte of `blocks`.
        size: bytes of the whole blob.
        is_partial: upstream sends only what was requested.
    """

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        body: Body,
        digest: Digest,
        start: int,
        received: Callable[[int], None],
    ) -> None:
        self._host = response.url.host or "upstream"
        self._body = body
        self._digest = digest
        self._received = received
        self.start = start
        first, self._stop, self.size = _extent(response, digest)
        if first > start:
            raise UpstreamProtocolError(f"{response.url.host} answers from byte {first} where {start} was asked for")
        # Upstream may ignore a range: then the bytes before it are read and dropped.
        self._skip = start - first
        self.is_partial = response.status == 206

    @property
    def stop(self) -> int:
        """The end of what upstream sends."""
        return self._stop

    async def blocks(self) -> AsyncIterator[memoryview]:
        """The bytes as they arrive; each block is valid until the next one is requested.

        Raises:
            UpstreamError: the body ends early, stalls, or has more bytes than announced.
        """
        position, skip = self.start - self._skip, self._skip
        pace = Pace(self._host)
        while block := await self._next(position):
            self._received(len(block))
            pace.check(len(block))
            position += len(block)
            if position > self._stop:
                raise UpstreamProtocolError(f"{self._host} sends more of {self._digest} than it announced")
            if skip >= len(block):
                skip -= len(block)
                continue
            rest, skip = [block[skip:]], 0
            # A beginning of up to 256 KiB would be kept for as long as upstream pauses.
            del block
            yield rest.pop()
        if position < self._stop:
            raise self._cut(position)

    async def _next(self, position: int) -> memoryview:
        try:
            return await self._body.step()
        except BodyEnded as error:
            raise self._cut(position) from error

    def _cut(self, position: int) -> UpstreamDisconnected:
        return UpstreamDisconnected(f"{self._host} ended {self._digest} at byte {position} of {self._stop}")


def _extent(response: aiohttp.ClientResponse, digest: Digest) -> tuple[int, int, int]:
    """Start and end of the range that a response carries, and the size of the blob (RFC 9110 sections 8.6 and 14.4)."""
    host = response.url.host
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise UpstreamProtocolError(f"{host} encodes {digest}, although identity was asked for")
    if response.status == 206:
        try:
            start, stop, size = parse_content_range(response.headers.get("Content-Range", ""))
        except InvalidInput as error:
            raise UpstreamProtocolError(f"{host} answers a range of {digest}: {error}") from error
        if size is None:
            raise UpstreamProtocolError(f"{host} answers a range of {digest} without its size")
        return start, stop, size
    length = response.content_length
    if length is None:
        raise UpstreamProtocolError(f"{host} does not say how long {digest} is")
    return 0, length, length
