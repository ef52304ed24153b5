"""The admin address: its listener, and the application behind it."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

from aiohttp import web

from mirror.admin.api import OPEN
from mirror.admin.guard import AdminGuard, respond
from mirror.config.model import Config
from mirror.core.counts import CountTable
from mirror.core.hosts import HostNames
from mirror.listener.admission import WEBHOOK_PREFIX, Way
from mirror.listener.listener import Listener
from mirror.listener.registry_listener import bounds_of
from mirror.listener.sockets import is_loopback
from mirror.metrics import Metrics


class Admin:
    """Serves operators, bounded as clients are at the registry address.

    Args:
        token: called for the token that is wanted, if any.
        counts: what all processes have under way.

    Attributes:
        listener: of the address.
    """

    def __init__(
        self, application: web.Application, token: Callable[[], str | None], metrics: Metrics, counts: CountTable
    ) -> None:
        self._runner = web.AppRunner(application, access_log=None, handle_signals=False)
        self._guard = AdminGuard(self._answer, application.router, token)
        way = Way("admin", self._guard.handle, self._guard.handle, respond, any_host=(*OPEN, WEBHOOK_PREFIX))
        self.listener = Listener(way, metrics, counts)
        self._on_loopback = False

    async def open(self, config: Config, sock: socket.socket, relieve: Callable[[], None]) -> None:
        """Begin to accept connections; see `Listener.open`."""
        self._on_loopback = is_loopback(sock)
        self.configure(config)
        await self._runner.setup()
        assert self._runner.server is not None
        self.listener.open(sock, relieve, request_factory=self._runner.server.request_factory)

    def configure(self, config: Config) -> None:
        """Do as a configuration says from now on."""
        hosts = HostNames(config.admin.hosts) if self._on_loopback else None
        self.listener.configure(bounds_of(config.limits), hosts)

    async def close(self) -> None:
        """Accept no more, and end all connections."""
        self.listener.close()
        await self.listener.shutdown(1.0)
        await self._runner.cleanup()

    def _answer(self, request: web.Request) -> Awaitable[web.StreamResponse]:
        assert self._runner.server is not None
        return self._runner.server.request_handler(request)
