"""The HTTP server of the registry address: its connections, and what happens to those who do not speak HTTP."""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from aiohttp import web

from mirror.web import problems
from mirror.web.peers import Admission, Peers
from mirror.web.responses import problem_response

log = structlog.get_logger(__name__)

# A connection whose client is refused waits so long for the request to answer that to. Seconds.
_REFUSED_FOR = 5.0


class Server(web.Server):
    """Knows who is connected, and answers malformed requests as everything else: in JSON, with one line in the log."""

    def __init__(self, handler: Any, peers: Peers, **settings: Any) -> None:
        super().__init__(handler, **settings)
        self.peers = peers

    def __call__(self) -> web.RequestHandler:
        return Connection(self, self.peers, loop=self._loop, **self._kwargs)


class Connection(web.RequestHandler):
    """One client's connection.

    Attributes:
        admission: what was decided about it when it was made.
    """

    __slots__ = ("_end", "_peers", "admission")

    admission: Admission

    def __init__(self, server: Server, peers: Peers, **settings: Any) -> None:
        super().__init__(server, **settings)
        self._peers = peers
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Decide who this is, once for all requests that come by it."""
        peername = transport.get_extra_info("peername")
        self.admission = self._peers.connected(str(peername[0]) if peername else "")
        super().connection_made(transport)
        if self.admission.refusal is not None:
            self._end = self._loop.call_later(0.0 if self.admission.cut else _REFUSED_FOR, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Give the client's place to another."""
        if self._end is not None:
            self._end.cancel()
        self._peers.left(self.admission)
        super().connection_lost(exc)

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
            # What follows a colon is what the client sent, which may be a secret.
            cause = (message or type(exc).__name__).partition(":")[0][:200]
            log.info("request_malformed", client=request.remote, cause=cause)
            problem = problems.malformed(cause)
        else:
            log.error("request_failed", client=request.remote, exc_info=exc)
            problem = problems.problem(RuntimeError(type(exc).__name__), "")
        response = problem_response(problem, "-")
        response.force_close()
        return response
