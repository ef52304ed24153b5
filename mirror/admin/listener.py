"""The listener of the admin address."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

from aiohttp import web

from mirror.admin.api import OPEN
from mirror.admin.guard import AdminGuard, respond
from mirror.admin.page.session import Sessions
from mirror.config.model import Config
from mirror.config.sections import Admin
from mirror.core.counts import CountTable
from mirror.core.hosts import HostNames
from mirror.errors import ConfigurationError
from mirror.listener.admission import WEBHOOK_PREFIX, Handlers
from mirror.listener.listener import Listener
from mirror.listener.registry_listener import bounds_of
from mirror.listener.sockets import is_loopback
from mirror.metrics import Metrics
from mirror.small_files import read_text


class AdminListener:
    """Serves the admin address within the same limits as the registry address.

    Args:
        sessions: of the status page.
        counts: connections and requests of all processes.

    Attributes:
        listener: of the address.
    """

    def __init__(self, application: web.Application, sessions: Sessions, metrics: Metrics, counts: CountTable) -> None:
        self._sessions = sessions
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False)
        self._guard = AdminGuard(self._answer, application.router)
        handlers = Handlers("admin", self._guard.handle, self._guard.handle, respond, any_host=(*OPEN, WEBHOOK_PREFIX))
        self.listener = Listener(handlers, metrics, counts)
        self._on_loopback = False

    async def open(self, config: Config, sock: socket.socket, relieve: Callable[[], None]) -> None:
        """Begin to accept connections; see `Listener.open`.

        Raises:
            ConfigurationError: the token file has become unusable since the configuration was checked.
        """
        self._on_loopback = is_loopback(sock)
        self.configure(config, await read_token(config.admin))
        await self._runner.setup()
        assert self._runner.server is not None
        self.listener.open(sock, relieve, request_factory=self._runner.server.request_factory)

    def configure(self, config: Config, token: str | None) -> None:
        """Use a configuration and its token from now on."""
        self._guard.token = self._sessions.token = token
        hosts = HostNames(config.admin.hosts) if self._on_loopback else None
        self.listener.configure(bounds_of(config.limits), hosts)

    async def close(self) -> None:
        """Stop accepting connections, and end all of them."""
        self.listener.close()
        await self.listener.shutdown(1.0)
        await self._runner.cleanup()

    def _answer(self, request: web.Request) -> Awaitable[web.StreamResponse]:
        assert self._runner.server is not None
        return self._runner.server.request_handler(request)


async def read_token(config: Admin) -> str | None:
    """Return the token of the admin address; None if none is configured.

    Raises:
        ConfigurationError: the file cannot be read, or is empty.
    """
    if config.token_file is None:
        return None
    try:
        token = (await read_text(config.token_file)).strip()
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", None) or "it is not text"
        raise ConfigurationError([f"admin.token_file: {config.token_file} cannot be read: {cause}"]) from error
    if not token:
        raise ConfigurationError([f"admin.token_file: {config.token_file} is empty"])
    return token
