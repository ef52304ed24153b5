"""One process of the mirror: starts, reloads and stops what serves."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from aiohttp import web

from mirror.admin.api import admin_application
from mirror.admin.export_api import ExportApi
from mirror.admin.import_api import ImportApi
from mirror.admin.listener import AdminListener, read_token
from mirror.admin.operations import AdminOperations
from mirror.admin.page.session import Sessions
from mirror.admin.page.site import StatusPage
from mirror.admin.push_webhook import PushWebhook
from mirror.admin.sync_operations import SyncOperations
from mirror.admin.traffic import TrafficHistory
from mirror.admin.worker_stats import WorkerStats
from mirror.config.model import Config, load
from mirror.core.counts import Total
from mirror.errors import ConfigurationError
from mirror.listener.access_log import AccessLog
from mirror.listener.admission import Handlers
from mirror.listener.inline import InlineRequest
from mirror.listener.registry_listener import RegistryListener
from mirror.listener.request_spans import RequestSpans
from mirror.listener.responses import problem_response
from mirror.service import logs
from mirror.service.current import Current
from mirror.service.graph import Graph, build
from mirror.service.logged_checks import log_host_checks, log_upstream_checks
from mirror.service.services import Services, WorkerGroup
from mirror.storage.coordination import wait
from mirror.storage.store import Store
from mirror.storage.traffic_file import TrafficFile
from mirror.sync.scheduler import SyncScheduler
from mirror.transfer.exporter import Exporter
from mirror.transfer.imports import Imports

if TYPE_CHECKING:
    from mirror.cluster.node import ClusterNode
    from mirror.service.cluster import NodeServer
    from mirror.sync.cluster_orders import ClusterOrders

log = structlog.get_logger(__name__)

# How long running responses may take after SIGTERM.
DRAIN_S = 30.0
_DRAIN_POLL_INTERVAL_S = 0.05
# How often a process publishes its metrics for the others.
_PUBLISH_INTERVAL_S = 1.0


class Mirror:
    """A mirror that serves: services that a reload keeps, and the graph that it replaces.

    Args:
        path: the configuration file, for reloads.
        group: the processes that this one belongs to.
    """

    def __init__(self, config: Config, path: Path | None, store: Store, group: WorkerGroup | None = None) -> None:
        group = group or WorkerGroup()
        self._path = path
        self._services = Services(config, store, group)
        metrics, downloads = self._services.metrics, self._services.downloads
        graph = build(config, self._services)
        self._current = Current(graph)
        node = self._services.node
        rounds, orders = (None, None) if node is None else (node.rounds, _build_orders(store, node))
        self._sync_scheduler = SyncScheduler(store, metrics, graph.sync_services, rounds, orders)
        self._sync_operations = SyncOperations(store)
        self._sync_operations.cluster = orders
        self._webhook = PushWebhook(self._sync_operations, metrics)
        self._access_log = AccessLog(group.log.put)
        handlers = Handlers(
            "access",
            self._handle,
            self._webhook.at_registry,
            problem_response,
            find_inline=self._find_inline,
            access_log=self._access_log,
            spans=None if self._services.tracing is None else RequestSpans(self._services.tracing),
        )
        self._registry_listener = RegistryListener(config, handlers, metrics, group.counts)
        worker_stats = WorkerStats(metrics, group.worker_stats)
        self._operations = AdminOperations(store, downloads, metrics, worker_stats, self._registry_listener)
        self._operations.node, self._operations.objects = self._services.node, self._services.objects
        self._traffic = TrafficHistory(TrafficFile(store.layout.traffic), group.started, self._operations.traffic)
        sessions = Sessions(group.secret)
        self._page = StatusPage(self._operations, self._sync_operations, self._traffic, sessions)
        self._exporter = Exporter(store, group.counts.count(Total.EXPORTS))
        self._imports = Imports()
        transfers = ExportApi(self._exporter, store.threads), ImportApi(self._imports)
        application = admin_application(self._operations, self._sync_operations, self._webhook, self._page, transfers)
        self._admin_listener = AdminListener(application, sessions, metrics, group.counts)
        self._node_server = self._build_node_server(config)
        self._configure(graph)
        self._started = time.time()
        self._skip_drain = False
        self._background: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        self._checking: asyncio.Task[None] | None = None

    async def serve(
        self,
        registry_socket: socket.socket,
        admin_socket: socket.socket,
        stop: asyncio.Event,
        ready: Callable[[], None] = lambda: None,
        node_socket: socket.socket | None = None,
    ) -> None:
        """Serve until `stop` is set; then drain, and release everything.

        Args:
            node_socket: for other nodes of the cluster, if there is one.

        Raises:
            ConfigurationError: a file has become unusable since the configuration was checked.
        """
        services = self._services
        await self._current.graph.start()
        janitor = self._spawn(services.janitor.run())
        self._spawn(self._publish())
        self._spawn(self._traffic.run())
        sync_scheduler = self._spawn(self._sync_scheduler.run())
        notifier = self._spawn(services.notifier.run())
        self._spawn(services.recheck.run())
        if services.objects is not None:
            self._spawn(services.objects.run())
        await self._registry_listener.open(registry_socket, self._relieve)
        self._spawn(self._registry_listener.watch())
        await self._admin_listener.open(self._current.graph.config, admin_socket, self._relieve)
        if self._node_server is not None and node_socket is not None:
            self._node_server.open(node_socket, self._relieve)
            self._spawn(self._node_server.run(services.downloads))
        self._announce()
        if self._services.group.counts.own == 0:
            self._spawn(log_host_checks(self._current.graph))
        ready()
        await stop.wait()
        # A sync job continues after the next start.
        sync_scheduler.cancel()
        await self._drain()
        await self._admin_listener.close()
        await self._close(janitor, notifier)

    async def reload(self) -> None:
        """Read the configuration again. An invalid one is refused (logged), and nothing changes."""
        # In order: the configuration that was read last stays in use.
        async with self._reloading:
            try:
                config = await asyncio.to_thread(load, self._path)
                token = await read_token(config.admin)
                graph = build(config, self._services, self._current.graph)
                await self._registry_listener.configure(config)
            except (ConfigurationError, OSError) as error:
                log.error("configuration_refused", problems=str(error).splitlines())
                self._operations.reload_problem = str(error)
                return
            self._operations.reload_problem = None
            await graph.start()
            fixed = _changed_but_fixed(self._current.graph.config, config)
            logs.configure(config.log, self._services.group.log)
            self._admin_listener.configure(config, token)
            self._configure(graph)
            await self._current.replace(graph)
        log.info("configuration_reloaded", needs_restart=fixed)

    def check_upstreams(self) -> None:
        """Begin to ask each upstream once, with its account, and to log what fails. Of several processes only the first does."""
        if self._checking is not None:
            self._checking.cancel()
        if self._services.group.counts.own == 0:
            self._checking = self._spawn(log_upstream_checks(self._current.graph))

    def skip_drain(self) -> None:
        """Do not wait for running responses: the second request to stop."""
        self._skip_drain = True

    def _configure(self, graph: Graph) -> None:
        """Give a graph's parts to what outlives it."""
        config = graph.config
        for hint in config.hints() if self._services.group.counts.own == 0 else ():
            log.warning("configuration_hint", said=hint)
        self._services.configure(config)
        self._sync_scheduler.configure(graph.sync_services)
        self._sync_operations.configure(config)
        self._operations.configure(config, graph.cache)
        self._exporter.configure(config, graph.cache)
        self._imports.configure(graph.cache, config.default_registry)
        self._webhook.secret_file = config.sync.webhook_secret_file
        self._access_log.configure(config.log.access)
        if self._node_server is not None:
            self._node_server.configure(graph)
        for name, registry in graph.registries.items():
            self._services.metrics.declare_registry(name, [upstream.name for upstream in registry.upstreams])
            if registry.is_offline:
                self._services.metrics.forget_upstreams(name)

    def _build_node_server(self, config: Config) -> NodeServer | None:
        node, group = self._services.node, self._services.group
        if node is None:
            return None
        from mirror.service.cluster import NodeServer  # noqa: PLC0415 - see `Services`

        server = NodeServer(config, node, self._services.store, self._services.metrics, group.counts)
        self._operations.cluster_purge = server.purge
        return server

    def _announce(self) -> None:
        config = self._current.graph.config
        log.info(
            "serving",
            registry=f"{'http' if config.tls.certificate is None else 'https'}://{config.listen}",
            admin=f"http://{config.admin.listen}",
            store=self._services.store.layout.root,
            registries=sorted(config.registries),
        )

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        graph = self._current.graph
        # Not a context manager: this is on the path of every hit.
        graph.in_use.acquire()
        try:
            return await graph.api.handle(request)
        finally:
            graph.in_use.release()

    def _find_inline(self, head: bytes) -> InlineRequest | None:
        return self._current.graph.api.inline.find(head)

    def _relieve(self) -> None:
        for listener in (self._registry_listener.listener, self._admin_listener.listener):
            listener.end_idle()
        if self._node_server is not None:
            self._node_server.end_idle()

    async def _publish(self) -> None:
        """Publish the figures of this process for the others, and follow its downloads."""
        while True:
            if len(self._services.downloads):
                await asyncio.to_thread(self._operations.sample_downloads)
            if self._services.group.size > 1:
                await asyncio.to_thread(self._operations.publish)
            await asyncio.sleep(_PUBLISH_INTERVAL_S)

    async def _drain(self) -> None:
        self._operations.draining = True
        self._registry_listener.listener.close()
        self._current.graph.stop_background()
        if self._node_server is not None:
            await self._node_server.drain()
        log.info("draining", requests=self._in_progress, at_most_seconds=DRAIN_S)
        await wait(self._is_drained, DRAIN_S, _DRAIN_POLL_INTERVAL_S)
        if self._in_progress:
            log.warning("drain_ended", requests_cut=self._in_progress)
        await self._registry_listener.shutdown(1.0)

    @property
    def _in_progress(self) -> int:
        """Requests of clients and of other nodes that are not answered yet."""
        of_nodes = 0 if self._node_server is None else self._node_server.in_progress
        return self._registry_listener.in_progress + of_nodes

    def _is_drained(self) -> bool:
        return self._skip_drain or not self._in_progress

    async def _close(self, janitor: asyncio.Task[None], notifier: asyncio.Task[None]) -> None:
        await self._services.downloads.close()
        await _end(notifier)
        # While Redis can be told what has arrived.
        await self._services.notifier.close()
        if self._services.objects is not None:
            await self._services.objects.close()
        if self._node_server is not None:
            await self._node_server.close()
        await _end(janitor)
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._current.close()
        await self._services.store.small.close()
        if self._services.tracing is not None:
            await self._services.tracing.close()
        await asyncio.to_thread(self._operations.publish)
        await asyncio.to_thread(self._traffic.record)
        self._page.close()
        log.info("stopped", seconds=round(time.time() - self._started))

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def _build_orders(store: Store, node: ClusterNode) -> ClusterOrders:
    from mirror.sync.cluster_orders import ClusterOrders  # noqa: PLC0415 - see `Services`

    return ClusterOrders(store.jobs, node)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _changed_but_fixed(old: Config, new: Config) -> list[str]:
    """Return the keys that have changed, but take effect only after a restart."""
    keys = {
        "listen": old.listen != new.listen,
        "workers": old.workers != new.workers,
        "admin.listen": old.admin.listen != new.admin.listen,
        "storage": old.storage != new.storage,
        "cluster": old.cluster != new.cluster,
        "objects": old.objects != new.objects,
        "downloads.connections_per_blob": old.downloads.connections_per_blob != new.downloads.connections_per_blob,
        "tracing": old.tracing != new.tracing,
        "downloads.parallel_from": old.downloads.parallel_from != new.downloads.parallel_from,
    }
    return [key for key, changed in keys.items() if changed]
