"""Runs a mirror until a signal stops it: in this process, or in several that share the ports and the store."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import gc
import os
import resource
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path

from mirror.admin.worker_stats import fold_ended, note_reload
from mirror.config.model import Config, find, load
from mirror.errors import ConfigurationError
from mirror.listener.passed_sockets import inherited
from mirror.listener.sockets import listen
from mirror.service import logs
from mirror.service.log_writer import LogWriter
from mirror.service.mirror import Mirror
from mirror.service.sd_notify import notify
from mirror.service.services import WorkerGroup
from mirror.service.shared import SharedCounts
from mirror.service.supervisor import HANDLED_SIGNALS, Supervisor, Worker
from mirror.service.watchdog import WORKER_INTERVAL_S, ServiceWatchdog, keep_beating
from mirror.storage.layout import Layout
from mirror.storage.store import Store

# Threads of the event loop's executor, which resolves host names: each one that does not resolve occupies a thread for many
# seconds. What answers depend on has threads of its own.
_MAX_LOOKUPS = 64


@dataclass(frozen=True)
class _Start:
    """What a process starts from."""

    config: Config
    path: Path | None
    registry_socket: socket.socket
    admin_socket: socket.socket
    group: WorkerGroup
    node_socket: socket.socket | None = None


def run(named: Path | None) -> None:
    """Serve until a signal stops the mirror; see `find` for `named`.

    Raises:
        ConfigurationError: a key is invalid, or the store or a port cannot be used.
    """
    path = find(named)
    config = load(path)
    writer = LogWriter()
    logs.configure(config.log, writer)
    _raise_open_files_limit()
    # The watchdog aborts a process that hangs; the stacks of its threads are then written to the log.
    faulthandler.enable()
    workers = config.workers or os.cpu_count() or 1
    with ExitStack() as stack:
        passed = inherited()
        registry_socket = stack.enter_context(listen("listen", config.listen, passed))
        admin_socket = stack.enter_context(listen("admin.listen", config.admin.listen, passed))
        node_socket, node = None, ""
        if config.cluster.is_enabled:
            node_socket = stack.enter_context(listen("cluster.listen", config.cluster.listen, passed))
            node = _node_name(config)
        passed.refuse_others()
        group = WorkerGroup(log=writer, node=node)
        start = _Start(config, path, registry_socket, admin_socket, group, node_socket)
        if workers == 1:
            _serve_here(start, None)
        else:
            _serve_in_workers(start, workers)


def _serve_in_workers(first: _Start, count: int) -> None:
    Layout(str(first.config.storage.path.resolve())).prepare()
    with _stats_directory() as worker_stats:
        # Before the fork: all processes are one mirror to others.
        start = replace(first, group=replace(first.group, size=count, worker_stats=worker_stats))
        shared = SharedCounts(count)

        def work(worker: Worker) -> None:
            _serve_here(_current(start, worker, shared), worker)

        def reload() -> Config:
            try:
                config = load(start.path)
            except ConfigurationError as error:
                note_reload(worker_stats, str(error))
                raise
            note_reload(worker_stats, None)
            return config

        def ended(slot: int) -> None:
            shared.clear(slot)
            fold_ended(worker_stats)

        Supervisor(count, work, start.config, reload, ended).run()


@contextlib.contextmanager
def _stats_directory() -> Iterator[Path]:
    """A temporary directory in which the workers publish their metrics."""
    try:
        directory = tempfile.TemporaryDirectory(prefix="registry-mirror-")
    except OSError as error:
        problem = f"workers: no directory for temporary files can be made: {error.strerror or error}; TMPDIR can name another"
        raise ConfigurationError([problem]) from error
    with directory as path:
        yield Path(path)


def _current(start: _Start, worker: Worker, shared: SharedCounts) -> _Start:
    """Return what a worker starts from: the configuration that was loaded last, but for keys that need a restart."""
    fixed = {key: getattr(start.config, key) for key in ("listen", "workers", "storage", "cluster", "objects")}
    writer = LogWriter({"worker": worker.slot})
    logs.configure(worker.config.log, writer)
    group = replace(start.group, counts=shared.table(worker.slot), log=writer)
    return replace(start, config=worker.config.model_copy(update=fixed), group=group)


def _node_name(config: Config) -> str:
    """The URL of this mirror for other nodes: the same for all workers."""
    from mirror.cluster.address import advertised  # noqa: PLC0415 - only a node of a cluster needs it

    return advertised(config.cluster)


def _raise_open_files_limit() -> None:
    """Raise the limit of open files to its maximum: each client of a blob needs two, and the usual limit is 1024."""
    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))


def _serve_here(start: _Start, worker: Worker | None) -> None:
    with start.group.log.in_thread(), closing(Store(start.config.storage)) as store:
        mirror = Mirror(start.config, start.path, store, start.group)
        asyncio.run(_serve(mirror, start, worker))


async def _serve(mirror: Mirror, start: _Start, worker: Worker | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(_MAX_LOOKUPS, thread_name_prefix="lookups"))

    def end() -> None:
        if stop.is_set():
            mirror.skip_drain()
        notify("STOPPING=1")
        stop.set()

    def orphaned() -> None:
        loop.remove_reader(worker.lifeline if worker is not None else -1)
        end()

    for number in (signal.SIGTERM,) if worker is not None else (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    loop.add_signal_handler(signal.SIGHUP, _reloader(mirror))
    # The supervisor has blocked them until these handlers existed.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED_SIGNALS)
    if worker is not None:
        # Without its supervisor nothing would stop this process.
        loop.add_reader(worker.lifeline, orphaned)

    def ready() -> None:
        if worker is None:
            notify("READY=1", f"STATUS=Serving on {start.config.listen}")
        else:
            worker.ready()
        mirror.check_upstreams()

    # What exists now lives to the end: a full collection, which stops all threads, passes over it.
    gc.freeze()
    beating = loop.create_task(_keep_beating(worker))
    try:
        await mirror.serve(start.registry_socket, start.admin_socket, stop, ready, start.node_socket)
    finally:
        beating.cancel()


async def _keep_beating(worker: Worker | None) -> None:
    if worker is not None:
        await keep_beating(worker.beat, WORKER_INTERVAL_S)
    watchdog = ServiceWatchdog()
    if watchdog.interval is not None:
        await keep_beating(watchdog.beat, watchdog.interval)


def _reloader(mirror: Mirror) -> Callable[[], None]:
    reloads: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        await mirror.reload()
        mirror.check_upstreams()
        notify("READY=1")

    def begin() -> None:
        task = asyncio.get_running_loop().create_task(reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    return begin
