"""One process of the mirror, from its first socket to its last byte."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

import structlog
from aiohttp import web

from mirror.admin.api import admin_application
from mirror.admin.listener import Admin
from mirror.admin.push_webhook import PushWebhook
from mirror.config.model import Config, load
from mirror.core.names import Repository, Tag
from mirror.errors import ConfigurationError
from mirror.listener.admission import Way
from mirror.listener.inline import InlineRequest
from mirror.listener.registry_listener import RegistryListener
from mirror.listener.responses import problem_response
from mirror.service import logs
from mirror.service.current import Current
from mirror.service.graph import build
from mirror.service.operations import AdminOperations
from mirror.service.services import Services, WorkerGroup
from mirror.service.worker_stats import WorkerStats
from mirror.storage.store import Store

log = structlog.get_logger(__name__)

# How long running responses may go on after SIGTERM, in seconds.
DRAIN = 30.0
# How old what other processes say of themselves may be, in seconds.
_PUT_UP = 1.0


class Mirror:
    """A mirror that serves; made of services that stay and a graph that a reload replaces.

    Args:
        path: where the configuration came from, for reloads.
        group: the processes that this one is one of.
    """

    def __init__(self, config: Config, path: Path | None, store: Store, group: WorkerGroup | None = None) -> None:
        self._path = path
        self._store = store
        self._group = group or WorkerGroup()
        self._services = Services(
            config, store, self._group, lambda: self._current.graph.policies, lambda: self._current.graph.sync_services
        )
        self._metrics = self._services.metrics
        self._started = time.time()
        self._draining = self._hurried = False
        self._background: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        self._services.configure(config)
        self._current = Current(build(config, self._services))
        hooks = PushWebhook(lambda: self._current.graph.config.sync.webhook_secret_file, self._pushed, self._metrics)
        way = Way("access", self._handle, hooks.at_registry, problem_response, find_inline=self._find_inline)
        self._registry_listener = RegistryListener(config, way, self._metrics, self._group.counts)
        self._operations = AdminOperations(
            store,
            self._services.downloads,
            self._metrics,
            WorkerStats(self._metrics, self._group.worker_stats),
            lambda: self._current.graph,
            lambda: self._draining,
            lambda: self._registry_listener.problems,
        )
        application = admin_application(self._operations, hooks)
        self._admin = Admin(application, lambda: self._current.graph.admin_token, self._metrics, self._group.counts)

    async def serve(
        self,
        registry_socket: socket.socket,
        admin_socket: socket.socket,
        stop: asyncio.Event,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Answer requests until `stop` is set, then drain and let go of everything."""
        await self._current.graph.start()
        janitor = self._spawn(self._services.janitor.run())
        self._spawn(self._put_up())
        sync_scheduler = self._spawn(self._services.sync_scheduler.run())
        self._spawn(self._services.notifier.run())
        self._spawn(self._services.recheck.run())
        await self._registry_listener.open(registry_socket, self._relieve)
        self._spawn(self._registry_listener.watch())
        await self._admin.open(self._current.graph.config, admin_socket, self._relieve)
        self._announce()
        ready()
        await stop.wait()
        # Nothing is begun any more that nobody waits for; the next start goes on with it.
        sync_scheduler.cancel()
        await self._drain()
        await self._admin.close()
        await self._close(janitor)

    async def reload(self) -> None:
        """Read the configuration again; a wrong one is refused and the old one stays."""
        # One after the other: what was read last is to count in the end.
        async with self._reloading:
            try:
                config = await asyncio.to_thread(load, self._path)
                graph = build(config, self._services, self._current.graph)
                await self._registry_listener.configure(config)
            except (ConfigurationError, OSError) as error:
                log.error("configuration_refused", problems=str(error).splitlines())
                return
            fixed = _changed_but_fixed(self._current.graph.config, config)
            logs.configure(config.log)
            self._services.configure(config)
            self._admin.configure(config)
            await self._current.replace(graph)
        log.info("configuration_reloaded", needs_restart=fixed)

    # ---- life

    def _announce(self) -> None:
        config = self._current.graph.config
        log.info(
            "serving",
            registry=f"{'http' if config.tls.certificate is None else 'https'}://{config.listen}",
            admin=f"http://{config.admin.listen}",
            store=self._store.layout.root,
            registries=sorted(config.registries),
        )

    def skip_drain(self) -> None:
        """Do not wait for running responses any more; for whoever asks a second time to stop."""
        self._hurried = True

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        graph = self._current.graph
        # Not a context manager: every hit comes by here.
        graph.in_use.acquire()
        try:
            return await graph.api.handle(request)
        finally:
            graph.in_use.release()

    def _find_inline(self, head: bytes) -> InlineRequest | None:
        return self._current.graph.api.find_inline(head)

    def _relieve(self) -> None:
        for listener in (self._registry_listener.listener, self._admin.listener):
            listener.end_idle()

    async def _pushed(self, repository: Repository, tag: Tag) -> bool:
        return await asyncio.to_thread(self._operations.pushed, repository, tag)

    async def _put_up(self) -> None:
        while self._group.size > 1:
            await asyncio.to_thread(self._operations.publish)
            await asyncio.sleep(_PUT_UP)

    async def _drain(self) -> None:
        self._draining = True
        self._registry_listener.listener.close()
        self._current.graph.stop_background()
        log.info("draining", requests=self._registry_listener.in_progress, at_most_seconds=DRAIN)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DRAIN
        while self._registry_listener.in_progress and loop.time() < deadline and not self._hurried:  # noqa: ASYNC110 - a signal per request would cost more
            await asyncio.sleep(0.05)
        if self._registry_listener.in_progress:
            log.warning("drain_ended", requests_cut=self._registry_listener.in_progress)
        await self._registry_listener.shutdown(1.0)

    async def _close(self, janitor: asyncio.Task[None]) -> None:
        await self._services.downloads.close()
        janitor.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await janitor
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._services.notifier.close()
        await self._current.close()
        await self._services.store.small.close()
        await asyncio.to_thread(self._operations.publish)
        log.info("stopped", seconds=round(time.time() - self._started))

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def _changed_but_fixed(old: Config, new: Config) -> list[str]:
    """Keys that have changed but count only after a restart."""
    keys = {
        "listen": old.listen != new.listen,
        "workers": old.workers != new.workers,
        "admin.listen": old.admin.listen != new.admin.listen,
        "storage": old.storage != new.storage,
        "downloads.connections_per_blob": old.downloads.connections_per_blob != new.downloads.connections_per_blob,
    }
    return [key for key, changed in keys.items() if changed]
