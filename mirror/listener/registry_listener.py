"""The listener of the registry address, with TLS and admission as configured; it follows files that are renewed."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import structlog

from mirror.config.model import Config
from mirror.config.sections import Access, Limits, Tls
from mirror.config.tls import certificate_names, server_context
from mirror.core.counts import CountTable
from mirror.core.hosts import HostNames
from mirror.core.htpasswd import parse_htpasswd
from mirror.core.networks import Network, parse_network
from mirror.errors import ConfigurationError
from mirror.listener.admission import Handlers
from mirror.listener.basic_auth import BasicAuthenticator
from mirror.listener.connections import Bounds
from mirror.listener.listener import Listener
from mirror.listener.sockets import is_loopback
from mirror.metrics import Metrics
from mirror.small_files import read_text

log = structlog.get_logger(__name__)

# Files that may be renewed are checked at this interval; unusable ones are retried, and logged, at the other.
_POLL_INTERVAL_S = 2.0
_RETRY_INTERVAL_S = 600.0

_STILL = "cannot be used as it is now, the log says why; what was read before still counts"


class RegistryListener:
    """Serves the registry address. Open connections survive every change of the configuration.

    Attributes:
        listener: of the registry address.
        problems: configured files that are unusable now, by their keys; their earlier content stays in use.

    Args:
        counts: of all processes.
    """

    def __init__(self, config: Config, handlers: Handlers, metrics: Metrics, counts: CountTable) -> None:
        self.problems: dict[str, str] = {}
        self.listener = Listener(handlers, metrics, counts)
        self._executor = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) // 4), "passwords")
        self._on_loopback = False
        self._passwords: BasicAuthenticator | None = None
        self._users: dict[bytes, bytes] = {}
        self._changing = asyncio.Lock()
        self._config = config
        self._seen: dict[Path, object] = {}
        metrics.renewed_files_ok.set_function(lambda: not self.problems)

    @property
    def in_progress(self) -> int:
        """Admitted requests that are not answered yet."""
        return self.listener.in_progress

    async def open(self, sock: socket.socket, relieve: Callable[[], None]) -> None:
        """Start accepting connections; see `Listener.open`.

        Raises:
            ConfigurationError: a file has become unusable since it was checked.
        """
        self._on_loopback = is_loopback(sock)
        await self.configure(self._config)
        self.listener.open(sock, relieve)

    async def configure(self, config: Config) -> None:
        """Apply a configuration.

        Raises:
            ConfigurationError: one of its files is unusable; nothing changes.
        """
        async with self._changing:
            seen = await asyncio.to_thread(_look, _files(config))
            context = await asyncio.to_thread(_context, config.tls)
            users = await _users(config.access)
            names = await asyncio.to_thread(_names, config.tls)
            self.listener.use(context)
            if users != self._users:
                self._users, self._passwords = users, BasicAuthenticator(users, self._executor) if users else None
            access = config.access
            hosts = HostNames((*access.hosts, *names)) if self._on_loopback else None
            bounds = bounds_of(config.limits, tuple(map(parse_network, access.networks)))
            self.listener.configure(bounds, hosts, self._passwords, anonymous=access.anonymous)
            self._config, self._seen, self.problems = config, seen, {}

    async def watch(self) -> None:
        """Follow renewed files until cancelled."""
        loop, again = asyncio.get_running_loop(), 0.0
        refused: dict[Path, object] = {}
        while True:
            await asyncio.sleep(_POLL_INTERVAL_S)
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
                # The renewal may be incomplete: the next change of a file is another try.
                refused, again = seen, loop.time() + _RETRY_INTERVAL_S
                # The log's text can name users, and `problems` is public.
                self.problems = {line.partition(":")[0]: _STILL for line in error.problems}
                log.error("renewed_files_refused", problems=error.problems)
            else:
                log.info("renewed_files_in_use", files=sorted(map(str, files)))

    async def shutdown(self, timeout: float) -> None:
        """Close all connections."""
        await self.listener.shutdown(timeout)
        if self._passwords is not None:
            await self._passwords.close()
        self._executor.shutdown(wait=False, cancel_futures=True)


def _files(config: Config) -> list[Path]:
    tls = config.tls
    named = (tls.certificate, tls.key, tls.client_ca, config.access.htpasswd_file)
    return [path for path in named if path is not None]


def _look(files: Iterable[Path]) -> dict[Path, object]:
    """The state of each file, which differs after any change of it."""
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


def _names(tls: Tls) -> frozenset[str]:
    if tls.certificate is None:
        return frozenset()
    try:
        return certificate_names(tls.certificate)
    except (ValueError, OSError) as error:
        raise ConfigurationError([f"tls: {error}"]) from error


async def _users(access: Access) -> dict[bytes, bytes]:
    if access.htpasswd_file is None:
        return {}
    try:
        return parse_htpasswd(await read_text(access.htpasswd_file))
    except (ValueError, OSError) as error:
        raise ConfigurationError([f"access.htpasswd_file: {error}"]) from error


def bounds_of(limits: Limits, networks: tuple[Network, ...] = ()) -> Bounds:
    """The limits of an address."""
    return Bounds(networks, limits.connections, limits.connections_per_address, limits.requests_per_address)
