"""An address of the mirror: its socket, its connections and its admission. The same for both addresses."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Any

from mirror.core.counts import CountTable
from mirror.core.hosts import HostNames
from mirror.listener.acceptor import Acceptor
from mirror.listener.admission import AdmissionMiddleware, Handlers
from mirror.listener.basic_auth import BasicAuthenticator
from mirror.listener.connections import Bounds
from mirror.listener.server import Server
from mirror.metrics import Metrics


class Listener:
    """Serves an address within its limits: connections, requests, and the time until a request's headers are complete."""

    def __init__(self, handlers: Handlers, metrics: Metrics, counts: CountTable) -> None:
        self._admission = AdmissionMiddleware(handlers, metrics, counts)
        self._context: ssl.SSLContext | None = None
        self._acceptor: Acceptor | None = None
        self._server: Server | None = None

    @property
    def in_progress(self) -> int:
        """Admitted requests that are not answered yet."""
        return self._admission.in_progress

    def use(self, context: ssl.SSLContext | None) -> None:
        """Use a TLS context for new connections; None for plain ones."""
        self._context = context
        if self._acceptor is not None:
            self._acceptor.use(context)

    def configure(
        self, bounds: Bounds, hosts: HostNames | None, passwords: BasicAuthenticator | None = None, *, anonymous: bool = True
    ) -> None:
        """Change the rules of admission; see `AdmissionMiddleware.configure`."""
        self._admission.configure(bounds, hosts, passwords, anonymous=anonymous)

    def open(self, sock: socket.socket, relieve: Callable[[], None], **settings: Any) -> None:
        """Start accepting connections.

        Args:
            sock: a listening socket; `close` closes it.
            relieve: closes idle connections of all addresses when no descriptors are left.
            settings: further settings of the HTTP server.
        """
        self._server = Server(self._admission, **settings)
        self._acceptor = Acceptor(sock, self._server.connection, relieve)
        self._acceptor.use(self._context)
        self._acceptor.start()

    def end_idle(self) -> None:
        """Close idle connections now, and the others after their request."""
        if self._server is not None:
            self._server.pre_shutdown()

    def close(self) -> None:
        """Stop accepting, close idle connections, and the others after their request."""
        if self._acceptor is not None:
            self._acceptor.close()
        self.end_idle()

    async def shutdown(self, timeout: float) -> None:
        """Close all connections."""
        if self._acceptor is not None:
            await self._acceptor.abandon()
        if self._server is not None:
            await self._server.shutdown(timeout)
