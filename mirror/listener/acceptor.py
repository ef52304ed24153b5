"""Accepts connections on a listening socket, also while the process has no descriptors left.

asyncio's own accept loop then runs through the whole backlog and logs a traceback for each connection (CPython issue 79197).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import Callable

import structlog

from mirror.listener.server import Connection
from mirror.listener.tls_protocol import TlsProtocol
from mirror.throttled_log import ThrottledLog

log = structlog.get_logger(__name__)

# Connections that are accepted in one iteration of the event loop.
_MAX_ACCEPTED = 128
# Without descriptors, accepting is retried after the pause; after the shortage, idle connections are closed.
_PAUSE_S = 0.2
_SHORTAGE_S = 1.0
# A shortage ends when accepting has not failed for this time.
_CALM_S = 5.0
# Connections that are closed unserved at a time, so that their clients do not wait in the backlog.
_MAX_SHED = 256
# Limits of the TLS handshake and of the TLS shutdown.
_HANDSHAKE_S, _SHUTDOWN_S = 10, 60

# Errors of the connection itself (accept(2), "Error handling"); all others are errors of this process.
_OF_THE_CONNECTION = frozenset(
    {
        errno.ECONNABORTED,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.ENONET,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.EPERM,
        errno.EPROTO,
    }
)


class Acceptor:
    """Accepts until it is closed.

    Args:
        sock: a listening, non-blocking socket; `close` closes it.
        connection: returns the protocol for a client's address, or None to close the connection at once.
        relieve: closes idle connections; called when a shortage of descriptors lasts.
    """

    def __init__(
        self,
        sock: socket.socket,
        connection: Callable[[str], Connection | None],
        relieve: Callable[[], None],
    ) -> None:
        self._socket = sock
        self._connection = connection
        self._relieve = relieve
        self._loop = asyncio.get_running_loop()
        self._log = ThrottledLog(log)
        self._context: ssl.SSLContext | None = None
        self._connecting: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        self._short_since: float | None = None
        self._short_at = 0.0
        self._closed = False
        # A descriptor that is given up to accept and close a connection when there is no other.
        self._reserve = _reserve()

    def use(self, context: ssl.SSLContext | None) -> None:
        """Use a TLS context for connections accepted from now on; None for plain ones."""
        self._context = context

    def start(self) -> None:
        """Begin to accept."""
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Stop accepting. Accepted connections stay open."""
        if self._closed:
            return
        self._closed = True
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._drop_reserve()

    async def abandon(self) -> None:
        """Close connections whose set-up is not complete."""
        tasks = list(self._connecting)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(_MAX_ACCEPTED):
            try:
                sock, address = self._socket.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _OF_THE_CONNECTION:
                    continue
                self._run_short(error)
                return
            if self._short_since is not None:
                self._recover(self._short_since)
            self._take(sock, str(address[0]))

    def _take(self, sock: socket.socket, address: str) -> None:
        connection = self._connection(address)
        if connection is None:
            sock.close()
            return
        task = self._loop.create_task(self._connect(sock, connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, sock: socket.socket, connection: Connection) -> None:
        try:
            if self._context is None:
                await self._loop.connect_accepted_socket(lambda: connection, sock)
            else:
                await self._encrypt(sock, connection, self._context)
        except BaseException as error:
            connection.abandoned()
            sock.close()
            # Errors of the client, and its disconnect, are not logged.
            if not isinstance(error, OSError):
                raise

    async def _encrypt(self, sock: socket.socket, connection: Connection, context: ssl.SSLContext) -> None:
        ready = self._loop.create_future()
        protocol = TlsProtocol(
            self._loop,
            connection,
            context,
            ready,
            server_side=True,
            ssl_handshake_timeout=_HANDSHAKE_S,
            ssl_shutdown_timeout=_SHUTDOWN_S,
        )
        transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, sock)
        try:
            await ready
        except BaseException:
            transport.abort()
            raise

    # ---- out of descriptors

    def _run_short(self, error: OSError) -> None:
        """Pause accepting until descriptors are free; if the shortage lasts, close idle connections."""
        now = self._short_at = self._loop.time()
        if self._short_since is None:
            self._short_since = now
            hint = "raise the limit of open files, or lower limits.connections"
            self._log.log("error", "accept_paused", cause=error.strerror, hint=hint)
        if now - self._short_since >= _SHORTAGE_S:
            self._relieve()
            self._shed()
        self._loop.remove_reader(self._socket.fileno())
        self._pause = self._loop.call_later(_PAUSE_S, self.start)

    def _recover(self, since: float) -> None:
        """End the shortage if accepting has not failed for `_CALM_S`; a single success is no proof."""
        if self._loop.time() - self._short_at >= _CALM_S:
            self._log.log("info", "accept_resumed", seconds=round(self._short_at - since, 1))
            self._short_since = None

    def _shed(self) -> None:
        """Close connections that cannot be served, so that their clients turn to another host."""
        self._drop_reserve()
        for _ in range(_MAX_SHED):
            try:
                sock, _ = self._socket.accept()
            except OSError:
                break
            sock.close()
        self._reserve = _reserve()

    def _drop_reserve(self) -> None:
        if self._reserve is not None:
            os.close(self._reserve)
            self._reserve = None


def _reserve() -> int | None:
    with contextlib.suppress(OSError):
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    return None
