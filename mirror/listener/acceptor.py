"""Accepts connections on a listening socket, and keeps its head when the process is out of descriptors.

asyncio's own loop goes on over the whole backlog then, with a traceback for each connection (CPython issue 79197).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from asyncio import sslproto
from collections.abc import Callable

import structlog

from mirror.listener.server import Connection
from mirror.throttled_log import ThrottledLog

log = structlog.get_logger(__name__)

# Connections that are accepted before others of the loop have their turn.
_MAX_ACCEPTED = 128
# Until accepting is tried again when there are no descriptors, and how long that may last before something is done about it.
_PAUSE_S = 0.2
_SHORTAGE_S = 1.0
# A shortage is over when accepting has not failed for so long.
_CALM_S = 5.0
# Connections that are ended unserved at a time, so that nobody waits in the backlog for nothing.
_MAX_SHED = 256
# Until a client has said what TLS wants of it, and until it has taken what was sent when a connection ends.
_HANDSHAKE_S, _SHUTDOWN_S = 10, 60

# What has become of one connection before it was accepted (accept(2), "Error handling"); anything else is the matter with us.
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


class _Tls(sslproto.SSLProtocol):
    """TLS at the server's end. Clients send small requests: asyncio's 256 KiB for each to receive into would be a waste."""

    max_size = 16 << 10


class Acceptor:
    """Accepts until it is closed.

    Args:
        sock: it listens and does not block; closed in the end.
        connection: called with a client's address for what serves it; None to end the connection at once.
        relieve: called when the process has been out of descriptors for a while: has idle connections ended.
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
        # Given up to accept, and end, one connection when there is no other descriptor.
        self._reserve = _reserve()

    def use(self, context: ssl.SSLContext | None) -> None:
        """Encrypt connections that are accepted from now on; None for plain ones."""
        self._context = context

    def start(self) -> None:
        """Begin to accept."""
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def close(self) -> None:
        """Accept no more. What is accepted already goes on."""
        if self._closed:
            return
        self._closed = True
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        self._drop_reserve()

    async def abandon(self) -> None:
        """End connections that are accepted but do not stand yet."""
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
            # The client's mistakes, and its leaving, are nobody else's business.
            if not isinstance(error, OSError):
                raise

    async def _encrypt(self, sock: socket.socket, connection: Connection, context: ssl.SSLContext) -> None:
        ready = self._loop.create_future()
        protocol = _Tls(
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
        """Wait for others to give descriptors back; if that takes too long, take some from who does not use them."""
        now = self._short_at = self._loop.time()
        if self._short_since is None:
            self._short_since = now
            hint = "raise the limit of open files, or lower limits.connections"
            self._log.tell("error", "accept_paused", cause=error.strerror, hint=hint)
        if now - self._short_since >= _SHORTAGE_S:
            self._relieve()
            self._shed()
        self._loop.remove_reader(self._socket.fileno())
        self._pause = self._loop.call_later(_PAUSE_S, self.start)

    def _recover(self, since: float) -> None:
        """The shortage is over when there has been none for a while: until then one connection more or less tells nothing."""
        if self._loop.time() - self._short_at >= _CALM_S:
            self._log.tell("info", "accept_resumed", seconds=round(self._short_at - since, 1))
            self._short_since = None

    def _shed(self) -> None:
        """End connections that nobody can serve: their clients turn elsewhere, rather than wait."""
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
