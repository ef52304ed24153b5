"""Responses of the registry address: short ones that are ready, and bodies that are streamed from files.

Small hits are the most frequent requests, so the bytes of their responses are written without the header classes of aiohttp.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from http import HTTPStatus
from time import perf_counter
from typing import Final, NamedTuple, Protocol

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.helpers import rfc822_formatted_time

from mirror.aio import on_descriptor
from mirror.core.digest import Digest
from mirror.core.names import Reference, Repository
from mirror.core.outcome import Outcome
from mirror.download.reader import Body, Span
from mirror.errors import StorageError
from mirror.listener.file_sender import FileEnd, FileSender
from mirror.listener.oci_errors import Problem
from mirror.listener.tls_protocol import TLS, TlsProtocol
from mirror.metrics.request_counts import ERROR
from mirror.storage.page_cache import bring_in, read_resident_into

# Where a file has to be encrypted, it is read in pieces of this size: the only bytes of a blob in memory. Encrypted, a piece is
# one segment for a client on the same machine: the loopback interface has an MTU of 64 KiB.
_PIECE_BYTES = 60 << 10
# Other connections have their turn after so many bytes of one.
_TURN_BYTES = 1 << 20
# Bytes that are read from the disk at a time; reading of as many more is started.
_READ_AHEAD_BYTES = 4 << 20

API_VERSION = {"Server": "registry-mirror", "Docker-Distribution-Api-Version": "registry/2.0"}


class Target(NamedTuple):
    """What a request asks for."""

    kind: str
    repository: Repository | None
    reference: Reference | None


TARGET: Final = web.RequestKey("target", Target)
"""The key of a request under which its handler keeps the Target."""

Respond = Callable[[Problem, str], web.StreamResponse]
"""Builds an error response in the form of an address, from the problem and the request's identifier."""


def head(status: int, headers: Mapping[str, str]) -> bytes:
    """The status line and headers of an HTTP/1.1 response, without the final empty line."""
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in {**API_VERSION, **headers}.items()]
    return ("\r\n".join(lines) + "\r\n").encode("latin-1", "replace")


class Rendered(NamedTuple):
    """A response without the headers that differ for each response.

    Attributes:
        head: see the function of this name.
        digest: of a manifest.
    """

    status: int
    head: bytes
    body: bytes
    outcome: Outcome | None = None
    digest: Digest | None = None

    def whole(self, request_id: str, end: bytes = b"\r\n\r\n") -> bytes:
        """All bytes of the response.

        Args:
            end: ends its headers.
        """
        own = f"Date: {rfc822_formatted_time()}\r\nX-Request-Id: {request_id}".encode()
        return b"".join((self.head, own, end, self.body))


class ReadyResponse(web.StreamResponse):
    """A response whose head is rendered. Its body is in memory, or is sent by other means after `prepare`.

    Attributes:
        outcome: None for an error.
        begun: when the head was sent, of `time.perf_counter`.
        sent: bytes of a body that is not in memory.
        is_short: the body ended early.
        cause: of an error or of a short body, in words that the client may read.
        digest: of a manifest.
    """

    def __init__(self, rendered: Rendered, request_id: str, cause: str = "") -> None:
        super().__init__(status=rendered.status)
        self.outcome = rendered.outcome
        self.begun: float | None = None
        self.sent = 0
        self.is_short = False
        self.cause = cause
        self.digest = rendered.digest
        self._rendered = rendered
        self._request_id = request_id

    @property
    def word(self) -> str:
        """The outcome in logs and metrics."""
        return ERROR if self.status >= 400 else self.outcome or ""

    def body_bytes(self, method: str) -> int:
        """Bytes of the body, which a response to HEAD has not."""
        return self.sent + (0 if method == "HEAD" else len(self._rendered.body))

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        """Write the head and body, once."""
        if self._req is not None:
            return None
        alive = request.keep_alive and self._keep_alive is not False
        if not alive:
            self.force_close()
        end = b"\r\n\r\n" if alive else b"\r\nConnection: close\r\n\r\n"
        rendered = self._rendered._replace(body=b"") if request.method == "HEAD" else self._rendered
        self._keep_alive = alive
        self._req = request
        request[RESPONSE] = self
        self.begun = perf_counter()
        await request.writer.write(rendered.whole(self._request_id, end))
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        """Do nothing: everything is written."""


RESPONSE: Final = web.RequestKey("response", ReadyResponse)
"""The key of a request under which its response is kept once that has begun."""

_DISCONNECTED: Final = 499


def disconnected(request_id: str) -> ReadyResponse:
    """Stands for a response that nobody receives: the client has disconnected before its first byte."""
    return ReadyResponse(Rendered(_DISCONNECTED, b"", b""), request_id, "the client has disconnected")


def problem_response(problem: Problem, request_id: str) -> ReadyResponse:
    """An error response."""
    body = problem.body()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **problem.headers}
    rendered = Rendered(problem.status, head(problem.status, headers), body)
    return ReadyResponse(rendered, request_id, f"{problem.code}: {problem.detail}")


class Sending(Protocol):
    """A response whose body is being sent.

    Attributes:
        sent: bytes so far.
    """

    sent: int


async def send_spans(request: web.BaseRequest, response: Sending, body: Body, start: int, stop: int) -> None:
    """Send a part of a blob to the client; `response.sent` is right after a failure, too.

    Raises:
        ConnectionError: the client has disconnected.
        MirrorError: the blob ended short.
    """
    async for span in body.spans(start, stop):
        if isinstance(span, bytes):
            await request.writer.write(span)
            response.sent += len(span)
        else:
            await send_file(request, response, span, body.threads)


async def send_file(request: web.BaseRequest, response: Sending, span: Span, threads: Executor) -> None:
    """Send bytes of a file to the client; `response.sent` is right after a failure, too.

    Raises:
        ConnectionError: the client has disconnected.
        StorageError: the file has become shorter.
    """
    transport = request.transport
    if transport is None or transport.is_closing():
        raise ConnectionResetError("the client has gone")
    if request.protocol.ssl_context is not None:
        await _send_encrypted(request, response, span, threads)
        return
    if transport.get_write_buffer_size():
        await _empty_buffer(request, transport)
    sender, stop, known = FileSender(transport, span.file.fileno(), span.start), span.start + span.count, 0
    while sender.position < stop:
        start = sender.position
        try:
            await sender.send_until(stop, known)
        except FileEnd as error:
            raise _shorter() from error
        finally:
            response.sent += sender.position - start
        if sender.position < stop:
            known = await _bring_in(span, threads, sender.position, stop)


async def _empty_buffer(request: web.BaseRequest, transport: asyncio.Transport) -> None:
    """Wait until the client has taken what was written before."""
    transport.set_write_buffer_limits(high=0)
    try:
        await request.writer.drain()
    finally:
        transport.set_write_buffer_limits()


async def _bring_in(span: Span, threads: Executor, position: int, stop: int) -> int:
    """Have a thread read the bytes from `position` on into the page cache; returns the end of those that it has read."""
    end = min(position + _READ_AHEAD_BYTES, stop)
    await on_descriptor(threads, span.file.fileno(), bring_in, position, end, min(end + _READ_AHEAD_BYTES, stop))
    return end


async def _send_encrypted(request: web.BaseRequest, response: Sending, span: Span, threads: Executor) -> None:
    """Send through TLS. asyncio's fallback for `sendfile` reads 16 KiB at a time, each in a thread."""
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    tls: TlsProtocol = transport.get_extra_info(TLS)
    position, stop, descriptor = span.start, span.start + span.count, span.file.fileno()
    piece, turn_end = memoryview(bytearray(min(_PIECE_BYTES, span.count))), position + _TURN_BYTES
    while position < stop:
        if tls.is_full:
            await tls.wait_writable()
        piece = piece[: stop - position]
        count = read_resident_into(descriptor, piece, position)
        if count is None:
            await _bring_in(span, threads, position, stop)
            count = os.preadv(descriptor, [piece], position)
        if not count:
            raise _shorter()
        tls.write(piece[:count])
        position += count
        response.sent += count
        # A piece of which a part is in memory is a short one.
        if position >= turn_end:
            turn_end = position + _TURN_BYTES
            await asyncio.sleep(0)


def _shorter() -> StorageError:
    return StorageError("a file of the store has become shorter", "io")
