"""The HTTP server of an address: its connections, and responses to malformed requests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog
from aiohttp import EMPTY_PAYLOAD, http_exceptions, web

from mirror.listener import oci_errors
from mirror.listener.admission import AdmissionMiddleware
from mirror.listener.connections import Admission
from mirror.throttled_log import ThrottledLog
from mirror.tracing import request_id

log = structlog.get_logger(__name__)

# Limit for the first request of a refused connection.
_REFUSED_TIMEOUT_S = 5.0
# Limit for the headers of a request, from the start of the connection or the end of the last response.
_HEADERS_TIMEOUT_S = 30.0
# A record of the type handshake, of any version (RFC 8446 section 5.1).
_HANDSHAKE = b"\x16\x03"


class Server(web.Server):
    """Creates connections, and logs malformed requests in one line, without any of their content."""

    def __init__(self, admission: AdmissionMiddleware, **settings: Any) -> None:
        super().__init__(
            admission.handle, **settings, access_log=None, keepalive_timeout=_HEADERS_TIMEOUT_S, auto_decompress=False
        )
        self.respond = admission.handlers.respond
        self.respond_inline = admission.respond_inline
        self.ids = admission.ids
        self.access_log = admission.handlers.access_log
        self.log = ThrottledLog(log)
        self._limiter = admission.limiter

    def connection(self, address: str) -> Connection | None:
        """The protocol for a new connection from an address; None to close it without an answer."""
        admission = self._limiter.connected(address)
        if admission.cut:
            self._limiter.left(admission)
            return None
        return Connection(self, admission, self._limiter.left, loop=self._loop, **self._kwargs)


class Connection(web.RequestHandler):
    """A client's connection.

    Attributes:
        admission: the decision about it.
        head: the bytes of the request being handled, if all of them came in one piece; see `mirror.listener.inline`.
        on_lost: called when the client disconnects; see `while_connected`.
    """

    __slots__ = ("_at_boundary", "_end", "_is_handshake", "_left", "_server", "admission", "head", "on_lost")

    def __init__(self, server: Server, admission: Admission, left: Callable[[Admission], None], **settings: Any) -> None:
        super().__init__(server, **settings)
        self.admission = admission
        self._server = server
        self._left: Callable[[Admission], None] | None = left
        self._end: asyncio.TimerHandle | None = None
        # The parser waits for the first byte of a request.
        self._at_boundary = True
        # The first bytes are of TLS, which is not spoken here.
        self._is_handshake = False
        self.head: bytes | None = None
        self.on_lost: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start serving; a refused client gets a moment to send a request and receive the reason."""
        super().connection_made(transport)
        if self.admission.refusal is not None:
            self._end = self._loop.call_later(_REFUSED_TIMEOUT_S, self.force_close)

    def data_received(self, data: bytes) -> None:
        """Answer a remembered request inline; parse and handle everything else."""
        waiter, transport = self._waiter, self.transport
        idle = waiter is not None and not waiter.done()
        whole = idle and self._at_boundary
        if whole and transport is not None and not (self._paused or self._close or self._force_close):
            response = self._server.respond_inline(self.admission, data)
            if response is not None:
                self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
                transport.write(response)
                return
        count = self._request_count
        if not count and data.startswith(_HANDSHAKE):
            self._is_handshake = True
        super().data_received(data)
        # Exactly one request without a body, of which nothing is left over in the parser.
        self._at_boundary = (
            idle
            and self._request_count == count + 1
            and data.endswith(b"\r\n\r\n")
            and self._messages[-1][1] is EMPTY_PAYLOAD
            and not self._upgraded
        )
        self.head = data if whole and self._at_boundary else None

    def connection_lost(self, exc: BaseException | None) -> None:
        """Release the client's place."""
        if self._end is not None:
            self._end.cancel()
        self.abandoned()
        if self.on_lost is not None:
            self.on_lost()
        super().connection_lost(exc)

    def abandoned(self) -> None:
        """Release the client's place; the connection may never have been made."""
        if self._left is not None:
            self._left(self.admission)
            self._left = None

    def close(self) -> None:
        """Close after the request in progress; at once if there is none, because a next one would not be answered."""
        idle = self._waiter is not None and not self._waiter.done()
        super().close()
        if idle:
            self.force_close()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The response to a malformed request or a failed handler.

        Raises:
            ConnectionError: the client has disconnected, or a response has begun.
        """
        if isinstance(exc, ConnectionError):
            raise exc
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun")
        if status < 500:
            request_id.set(self._server.ids.name(None))
            level, cause = "info", _CONSTANT.get(message or "") or _cause(exc)
            if self._is_handshake:
                level, cause = "debug", "a TLS handshake, but this port is plain"
            self._server.log.log(level, "request_malformed", level, client=request.remote, cause=cause)
            problem = oci_errors.malformed(cause)
            self._server.access_log.malformed(request, problem.status, cause)
        else:
            self._server.log.log("error", "request_failed", type(exc).__name__, client=request.remote, exc_info=exc)
            problem = oci_errors.problem(RuntimeError(type(exc).__name__), "")
        response = self._server.respond(problem, request_id.get())
        response.force_close()
        return response


_CAUSES: tuple[tuple[type[BaseException], str], ...] = (
    (http_exceptions.BadStatusLine, "the request line cannot be read"),
    (http_exceptions.InvalidURLError, "the target cannot be read"),
    (http_exceptions.LineTooLong, "the request line or a header is too long"),
    (http_exceptions.InvalidHeader, "a header cannot be read"),
    (http_exceptions.TransferEncodingError, "the body's encoding cannot be read"),
    (http_exceptions.ContentEncodingError, "the body's encoding cannot be read"),
)
# Messages of the parser that repeat nothing of the request.
_CONSTANT = {"Missing 'Host' header in request.": "there is no Host header", "Too many headers received": "too many headers"}


def _cause(error: BaseException | None) -> str:
    """The defect of a request. The parser's messages are not used: they repeat the request, which may contain a secret."""
    return next((words for kind, words in _CAUSES if isinstance(error, kind)), "it is not HTTP/1.1 as it should be")


@contextlib.asynccontextmanager
async def while_connected(request: web.BaseRequest, seconds: float | None = None) -> AsyncIterator[None]:
    """Cancel the body of the context when the client disconnects, which a wait for upstream does not notice.

    Args:
        seconds: a time limit.

    Raises:
        ConnectionResetError: the client has disconnected.
        TimeoutError: the time limit is exceeded.
    """
    connection: Any = request.protocol
    scope = asyncio.timeout(seconds)
    gone = False

    def leave() -> None:
        nonlocal gone
        gone = True
        connection.on_lost = None
        scope.reschedule(asyncio.get_running_loop().time())

    try:
        async with scope:
            if request.transport is None:
                raise ConnectionResetError("the client has gone")
            connection.on_lost = leave
            try:
                yield
            finally:
                connection.on_lost = None
    except TimeoutError as error:
        if gone:
            raise ConnectionResetError("the client has gone") from error
        raise
