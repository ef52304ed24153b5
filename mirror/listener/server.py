"""The HTTP server of an address: its connections, and what happens to those who do not speak HTTP."""

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

log = structlog.get_logger(__name__)

# A connection whose client is refused waits so long for the request to answer that to. Seconds.
_REFUSED_FOR = 5.0
# A request's headers have to be there within this time after the connection or the last answer, in seconds.
_HEADERS = 30.0


class Server(web.Server):
    """Knows who is connected, and answers malformed requests as everything else: with one line in the log, and without
    a word of what was sent.
    """

    def __init__(self, admission: AdmissionMiddleware, **settings: Any) -> None:
        super().__init__(admission.handle, **settings, access_log=None, keepalive_timeout=_HEADERS, auto_decompress=False)
        self.respond = admission.way.respond
        self.respond_inline = admission.respond_inline
        self.log = ThrottledLog(log)
        self._limiter = admission.limiter

    def connection(self, address: str) -> Connection | None:
        """What serves a new connection from an address; None if that is to be ended without a word."""
        admission = self._limiter.connected(address)
        if admission.cut:
            self._limiter.left(admission)
            return None
        return Connection(self, admission, self._limiter.left, loop=self._loop, **self._kwargs)


class Connection(web.RequestHandler):
    """One client's connection.

    Attributes:
        admission: what was decided about it when it was accepted.
        head: the bytes of the request being handled, if all of them came in one piece; see `mirror.listener.inline`.
        on_lost: called when the client leaves; see `while_connected`.
    """

    __slots__ = ("_at_boundary", "_end", "_left", "_server", "admission", "head", "on_lost")

    def __init__(self, server: Server, admission: Admission, left: Callable[[Admission], None], **settings: Any) -> None:
        super().__init__(server, **settings)
        self.admission = admission
        self._server = server
        self._left: Callable[[Admission], None] | None = left
        self._end: asyncio.TimerHandle | None = None
        # The parser waits for the first byte of a request.
        self._at_boundary = True
        self.head: bytes | None = None
        self.on_lost: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve, or give a client that is refused a moment to ask and be told why."""
        super().connection_made(transport)
        if self.admission.refusal is not None:
            self._end = self._loop.call_later(_REFUSED_FOR, self.force_close)

    def data_received(self, data: bytes) -> None:
        """Answer a request that was answered before; have everything else parsed and handled."""
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
        """Give the client's place to another."""
        if self._end is not None:
            self._end.cancel()
        self.abandoned()
        if self.on_lost is not None:
            self.on_lost()
        super().connection_lost(exc)

    def abandoned(self) -> None:
        """Give the client's place to another; the connection may never have been made."""
        if self._left is not None:
            self._left(self.admission)
            self._left = None

    def close(self) -> None:
        """End when the request under way has been answered; at once if there is none: a next one would get no answer."""
        idle = self._waiter is not None and not self._waiter.done()
        super().close()
        if idle:
            self.force_close()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """The answer to what the parser refused; a client that has left gets none.

        Raises:
            ConnectionError: there is nobody to answer to, or the answer has begun.
        """
        if isinstance(exc, ConnectionError):
            raise exc
        if request.writer.output_size > 0:
            raise ConnectionError("the answer has begun")
        if status < 500:
            cause = _CONSTANT.get(message or "") or _cause(exc)
            self._server.log.tell("info", "request_malformed", client=request.remote, cause=cause)
            problem = oci_errors.malformed(cause)
        else:
            self._server.log.tell("error", "request_failed", type(exc).__name__, client=request.remote, exc_info=exc)
            problem = oci_errors.problem(RuntimeError(type(exc).__name__), "")
        response = self._server.respond(problem, "-")
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
# Words of the parser that repeat nothing.
_CONSTANT = {"Missing 'Host' header in request.": "there is no Host header", "Too many headers received": "too many headers"}


def _cause(error: BaseException | None) -> str:
    """What is wrong with a request, in our words: those of the parser repeat what was sent, which may be a secret."""
    return next((words for kind, words in _CAUSES if isinstance(error, kind)), "it is not HTTP/1.1 as it should be")


@contextlib.asynccontextmanager
async def while_connected(request: web.BaseRequest, seconds: float | None = None) -> AsyncIterator[None]:
    """End what is done inside when the client leaves: what only waits for upstream would not notice.

    Args:
        seconds: end it after that time, too.

    Raises:
        ConnectionResetError: the client has left.
        TimeoutError: the time is over.
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
