"""The way in for clients: the registry's socket with its TLS, and the door behind it; both as the files of the day want it."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from mirror.config import Config
from mirror.core.htpasswd import parse_htpasswd
from mirror.core.networks import parse_network
from mirror.errors import ConfigurationError
from mirror.metrics import Metrics
from mirror.sections import Access, Limits, Tls
from mirror.service.sockets import BACKLOG
from mirror.tls import server_context
from mirror.web.door import Door, Handler
from mirror.web.passwords import Passwords
from mirror.web.peers import Bounds
from mirror.web.server import Server

log = structlog.get_logger(__name__)

# A request's headers have to be there within this time after the connection or the last answer, in seconds.
_HEADERS = 30.0
# Until a client has said what TLS wants of it, and until it has taken what was sent when a connection ends. Seconds.
_HANDSHAKE, _SHUTDOWN = 10.0, 60.0
# How often files are looked at that may have been renewed, in seconds.
_LOOK = 2.0
# Files that cannot be used are tried again, and told of again, after so many seconds.
_AGAIN = 600.0

_STILL = "cannot be used as it is now, the log says why; what was read before still counts"


class Entrance:
    """Listens, and lets in whom the configuration wants. Connections that stand outlive every change.

    Attributes:
        problems: by their keys, files that cannot be used as they are on disk now; what they were before still counts.

    Args:
        handler: answers the requests that pass.
        webhook: answers those for webhooks, which need no user.
    """

    def __init__(self, config: Config, handler: Handler, metrics: Metrics, webhook: Handler) -> None:
        self.problems: dict[str, str] = {}
        self._door = Door(handler, metrics, webhook)
        self._executor = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 4), "passwords")
        self._socket: socket.socket | None = None
        self._server: Server | None = None
        self._listener: asyncio.Server | None = None
        self._passwords: Passwords | None = None
        self._users: dict[bytes, bytes] = {}
        self._changing = asyncio.Lock()
        self._config = config
        self._seen: dict[Path, object] = {}
        self._encrypted = False
        metrics.renewed_files_ok.set_function(lambda: not self.problems)

    @property
    def in_progress(self) -> int:
        """Requests that are being answered."""
        return self._door.in_progress

    async def open(self, sock: socket.socket) -> None:
        """Begin to accept connections on a socket that listens, which is closed in the end.

        Raises:
            ConfigurationError: a file has become useless since it was checked.
        """
        self._socket = sock
        self._server = Server(
            self._door.handle,
            self._door.peers,
            access_log=None,
            keepalive_timeout=_HEADERS,
            auto_decompress=False,
        )
        await self.configure(self._config)

    async def configure(self, config: Config) -> None:
        """Do as a configuration says from now on.

        Raises:
            ConfigurationError: one of its files is of no use; nothing has changed.
        """
        async with self._changing:
            seen = await asyncio.to_thread(_look, _files(config))
            context = await asyncio.to_thread(_context, config.tls)
            users = await asyncio.to_thread(_users, config.access)
            await self._listen(context)
            if users != self._users:
                self._users, self._passwords = users, Passwords(users, self._executor) if users else None
            self._door.configure(_bounds(config.access, config.limits), self._passwords, anonymous=config.access.anonymous)
            self._config, self._seen, self.problems = config, seen, {}

    async def watch(self) -> None:
        """Follow the files as they are renewed, for ever."""
        loop, again = asyncio.get_running_loop(), 0.0
        refused: dict[Path, object] = {}
        while True:
            await asyncio.sleep(_LOOK)
            files = _files(self._config)
            seen = await asyncio.to_thread(_look, files) if files else self._seen
            if seen == self._seen:
                self.problems = {}
                continue
            if seen == refused and loop.time() < again:
                continue
            try:
                await self.configure(self._config)
            except ConfigurationError as error:
                # They may be half way through being renewed: the next change of one of them is another try.
                refused, again = seen, loop.time() + _AGAIN
                # In other words than the log's: those can name users, and everybody may ask for problems.
                self.problems = {line.partition(":")[0]: _STILL for line in error.problems}
                log.error("renewed_files_refused", problems=error.problems)
            else:
                log.info("renewed_files_in_use", files=sorted(map(str, files)))

    def close(self) -> None:
        """Accept no connections any more, and let those that stand end with the request under way."""
        if self._listener is not None:
            self._listener.close()
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._server is not None:
            self._server.pre_shutdown()

    async def shutdown(self, timeout: float) -> None:
        """End all connections."""
        if self._server is not None:
            await self._server.shutdown(timeout)
        if self._passwords is not None:
            await self._passwords.close()
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def _listen(self, context: ssl.SSLContext | None) -> None:
        """Accept with another context, unless it is too late. The socket stays, so that no connection is lost meanwhile."""
        if self._server is None or self._socket is None:
            return
        old = self._listener
        if old is not None and context is None and not self._encrypted:
            return
        self._encrypted = context is not None
        # Without its backlog named again the socket would be left with asyncio's hundred.
        self._listener = await asyncio.get_running_loop().create_server(
            self._server,
            sock=self._socket.dup(),
            ssl=context,
            backlog=BACKLOG,
            ssl_handshake_timeout=None if context is None else _HANDSHAKE,
            ssl_shutdown_timeout=None if context is None else _SHUTDOWN,
        )
        if old is not None:
            await _close(old)


async def _close(listener: asyncio.Server) -> None:
    """Close a listener without losing what it has accepted but not yet begun with: asyncio drops that."""
    loop = asyncio.get_running_loop()
    for sock in listener.sockets:
        loop.remove_reader(sock.fileno())
    for _ in range(3):
        await asyncio.sleep(0)
    listener.close()


def _files(config: Config) -> list[Path]:
    tls = config.tls
    named = (tls.certificate, tls.key, tls.client_ca, config.access.htpasswd_file)
    return [path for path in named if path is not None]


def _look(files: Iterable[Path]) -> dict[Path, object]:
    """What changes when a file does."""
    found: dict[Path, object] = {}
    for path in files:
        try:
            status = path.stat()
        except OSError as error:
            found[path] = error.errno
        else:
            found[path] = status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
    return found


def _context(tls: Tls) -> ssl.SSLContext | None:
    if tls.certificate is None:
        return None
    try:
        return server_context(tls.certificate, tls.key, tls.client_ca)
    except (ValueError, OSError) as error:
        raise ConfigurationError([f"tls: {error}"]) from error


def _users(access: Access) -> dict[bytes, bytes]:
    if access.htpasswd_file is None:
        return {}
    try:
        return parse_htpasswd(access.htpasswd_file.read_text())
    except (ValueError, OSError) as error:
        raise ConfigurationError([f"access.htpasswd_file: {error}"]) from error


def _bounds(access: Access, limits: Limits) -> Bounds:
    return Bounds(
        tuple(map(parse_network, access.networks)),
        limits.connections,
        limits.connections_per_address,
        limits.requests_per_address,
    )
