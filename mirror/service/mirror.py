"""One process of the mirror, from its first socket to its last byte."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path

import structlog
from aiohttp import web

from mirror.config import Config, load
from mirror.core.names import Repository, Tag
from mirror.download.downloads import Downloads
from mirror.download.workshop import Policy, Workshop
from mirror.errors import ConfigurationError
from mirror.janitor import Janitor
from mirror.metrics import Metrics
from mirror.notifier import Notifier
from mirror.pull.usage import Usage
from mirror.scrub import Scrub
from mirror.service import logs
from mirror.service.board import Board
from mirror.service.entrance import Entrance
from mirror.service.graph import Graph, build
from mirror.service.operations import AdminOperations
from mirror.service.store import Store
from mirror.storage.eviction import Eviction
from mirror.sync.keeper import Keeper
from mirror.tracing import Trail
from mirror.upstream.webhook import Webhook
from mirror.web.admin_api import admin_application
from mirror.web.hooks import Hooks

log = structlog.get_logger(__name__)

# How long running responses may go on after SIGTERM, in seconds.
DRAIN = 30.0
# An old graph is closed when nothing has used its connections for this long: a download pauses between its attempts. Seconds.
_QUIET = 30.0
# How old what other processes say of themselves may be, in seconds.
_PUT_UP = 1.0


class Mirror:
    """A mirror that serves; made of a store that stays and a graph that a reload replaces.

    Args:
        path: where the configuration came from, for reloads.
        workers: how many processes share the store and the limits.
        board: directory in which they tell each other what they have counted; None if there is only this one.
        trail: what all of them are known by to other mirrors.
    """

    def __init__(
        self,
        config: Config,
        path: Path | None,
        store: Store,
        workers: int = 1,
        board: Path | None = None,
        trail: Trail | None = None,
    ) -> None:
        self._path = path
        self._trail = trail or Trail(os.urandom(8).hex())
        self._store = store
        self._workers = workers
        self._metrics = Metrics()
        self._usage = Usage()
        self._started = time.time()
        self._draining = self._hurried = False
        self._background: set[asyncio.Task[None]] = set()
        self._keeper = Keeper(store.layout, store.index, store.ledger, self._metrics, lambda: self._graph.means)
        self._janitor = self._hire(config)
        self._downloads = Downloads(self._workshop(config), lambda result: self._metrics.downloads.labels(result).inc())
        self._metrics.downloads_in_progress.set_function(lambda: len(self._downloads))
        self._metrics.download_readers.set_function(lambda: self._downloads.readers)
        self._notifier = Notifier(store.files, store.executor, lambda result: self._metrics.notifications.labels(result).inc())
        self._notifier.configure(_webhook(config))
        self._graph = self._build(config)
        self._hooks = Hooks(lambda: self._graph.config.sync.webhook_secret_file, self._pushed, self._metrics)
        self._entrance = Entrance(config, self._handle, self._metrics, self._hooks.at_registry)
        self._operations = AdminOperations(
            store,
            self._downloads,
            self._metrics,
            Board(self._metrics, board),
            lambda: self._graph,
            lambda: self._draining,
            lambda: self._entrance.problems,
        )

    async def serve(
        self,
        registry_socket: socket.socket,
        admin_socket: socket.socket,
        stop: asyncio.Event,
        ready: Callable[[], None] = lambda: None,
    ) -> None:
        """Answer requests until `stop` is set, then drain and let go of everything."""
        await self._graph.start()
        janitor = self._spawn(self._janitor.run())
        self._spawn(self._put_up())
        keeper = self._spawn(self._keeper.run())
        self._spawn(self._notifier.run())
        await self._entrance.open(registry_socket)
        self._spawn(self._entrance.watch())
        runner = web.AppRunner(admin_application(self._operations, self._hooks), access_log=None, handle_signals=False)
        await runner.setup()
        await web.SockSite(runner, admin_socket).start()
        self._announce()
        ready()
        await stop.wait()
        # Nothing is begun any more that nobody waits for; the next start goes on with it.
        keeper.cancel()
        await self._drain()
        await runner.cleanup()
        await self._close(janitor)

    async def reload(self) -> None:
        """Read the configuration again; a wrong one is refused and the old one stays."""
        try:
            config = await asyncio.to_thread(load, self._path)
            graph = self._build(config, self._graph)
            await self._entrance.configure(config)
        except (ConfigurationError, OSError) as error:
            log.error("configuration_refused", problems=str(error).splitlines())
            return
        fixed = _changed_but_fixed(self._graph.config, config)
        await graph.start()
        logs.configure(config.log)
        self._notifier.configure(_webhook(config))
        old, self._graph = self._graph, graph
        await old.rest()
        await old.resign()
        self._spawn(self._retire(old))
        log.info("configuration_reloaded", needs_restart=fixed)

    # ---- parts

    def _hire(self, config: Config) -> Janitor:
        store = self._store
        scrub = Scrub(
            store.layout,
            store.files,
            store.generation,
            config.storage.scrub_interval,
            lambda result: self._metrics.scrubbed_blobs.labels(result).inc(),
        )
        eviction = Eviction(store.layout, store.files, store.generation)
        return Janitor(
            store.layout,
            store.files,
            store.index,
            eviction,
            scrub,
            self._usage,
            self._metrics,
            lambda: self._graph.policies,
            self._keeper.kept,
        )

    def _workshop(self, config: Config) -> Workshop:
        return Workshop(
            self._store.layout,
            self._store.files,
            self._store.executor,
            Policy(fillers=config.downloads.connections_per_blob),
            lambda reason: self._metrics.download_resumes.labels(reason).inc(),
            self._janitor.make_room,
        )

    def _build(self, config: Config, previous: Graph | None = None) -> Graph:
        return build(
            config,
            self._store,
            self._downloads,
            self._metrics,
            self._usage,
            self._janitor.make_room,
            self._workers,
            self._trail,
            self._notifier.moved,
            previous,
        )

    # ---- life

    def _announce(self) -> None:
        config = self._graph.config
        log.info(
            "serving",
            registry=f"{'http' if config.tls.certificate is None else 'https'}://{config.listen}",
            admin=f"http://{config.admin.listen}",
            store=self._store.layout.root,
            registries=sorted(config.registries),
        )

    def hurry(self) -> None:
        """Do not wait for running responses any more; for whoever asks a second time to stop."""
        self._hurried = True

    def _handle(self, request: web.BaseRequest) -> Awaitable[web.StreamResponse]:
        return self._graph.api.handle(request)

    async def _pushed(self, repository: Repository, tag: Tag) -> bool:
        return await asyncio.to_thread(self._operations.pushed, repository, tag)

    async def _put_up(self) -> None:
        while self._workers > 1:
            await asyncio.to_thread(self._operations.put_up)
            await asyncio.sleep(_PUT_UP)

    async def _drain(self) -> None:
        self._draining = True
        self._entrance.close()
        await self._graph.resign()
        log.info("draining", requests=self._entrance.in_progress, at_most_seconds=DRAIN)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + DRAIN
        while self._entrance.in_progress and loop.time() < deadline and not self._hurried:  # noqa: ASYNC110 - a signal per request would cost more
            await asyncio.sleep(0.05)
        if self._entrance.in_progress:
            log.warning("drain_ended", requests_cut=self._entrance.in_progress)
        await self._entrance.shutdown(1.0)

    async def _retire(self, graph: Graph) -> None:
        """Let what the old graph has begun come to its end before its connections are closed."""
        quiet = 0.0
        try:
            while quiet < _QUIET:
                await asyncio.sleep(1.0)
                quiet = 0.0 if graph.http.busy else quiet + 1.0
        finally:
            await graph.close()

    async def _close(self, janitor: asyncio.Task[None]) -> None:
        await self._downloads.close()
        janitor.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await janitor
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        await self._notifier.close()
        await self._graph.close()
        await asyncio.to_thread(self._operations.put_up)
        log.info("stopped", seconds=round(time.time() - self._started))

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task


def _webhook(config: Config) -> Webhook | None:
    notify = config.sync.notify
    return None if notify.url is None else Webhook(notify.url, notify.secret_file)


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
