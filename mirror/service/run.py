"""Runs a mirror until a signal ends it: in this process, or in several that share the ports and the store."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from mirror.admin.worker_stats import fold_ended
from mirror.config.model import Config, find, load
from mirror.errors import ConfigurationError
from mirror.listener.sockets import listen
from mirror.service import logs
from mirror.service.mirror import Mirror
from mirror.service.sd_notify import notify
from mirror.service.services import WorkerGroup
from mirror.service.shared import SharedCounts
from mirror.service.supervisor import HEARD, Supervisor, Worker
from mirror.storage.layout import Layout
from mirror.storage.store import Store

# Names are looked up in the event loop's own threads. Each that does not resolve takes one of them for many seconds, and there
# are other small things to do beside them; what answers wait for has threads of its own.
_LOOKUPS = 64


@dataclass(frozen=True)
class _Setting:
    """What a serving process starts from."""

    config: Config
    path: Path | None
    registry_socket: socket.socket
    admin_socket: socket.socket
    group: WorkerGroup


def run(named: Path | None) -> None:
    """Serve with the configuration that is found from `named` on; returns after an orderly stop.

    Raises:
        ConfigurationError: it cannot be used: a key, the store, or a port.
    """
    path = find(named)
    config = load(path)
    logs.configure(config.log)
    _take_open_files()
    workers = config.workers or os.cpu_count() or 1
    with ExitStack() as stack:
        registry_socket = stack.enter_context(listen("listen", config.listen))
        admin_socket = stack.enter_context(listen("admin.listen", config.admin.listen))
        if workers == 1:
            _serve_here(_Setting(config, path, registry_socket, admin_socket, WorkerGroup()), None)
            return
        Layout(str(config.storage.path.resolve())).prepare()
        worker_stats = _directory_for_figures(stack)
        # Before there are several processes: they are one mirror.
        setting = _Setting(config, path, registry_socket, admin_socket, WorkerGroup(workers, worker_stats))
        shared = SharedCounts(workers)

        def work(worker: Worker) -> None:
            _serve_here(_of_the_day(setting, worker, shared), worker)

        def ended(slot: int) -> None:
            shared.clear(slot)
            fold_ended(worker_stats)

        Supervisor(workers, work, config, lambda: load(path), ended).run()


def _directory_for_figures(stack: ExitStack) -> Path:
    """Where workers tell each other what they have counted."""
    try:
        return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="registry-mirror-")))
    except OSError as error:
        problem = f"workers: no directory for temporary files can be made: {error.strerror or error}; TMPDIR can name another"
        raise ConfigurationError([problem]) from error


def _of_the_day(setting: _Setting, worker: Worker, shared: SharedCounts) -> _Setting:
    """A worker that replaces another one starts from the configuration that was reloaded last, but for what only a restart
    of all changes."""
    fixed = {key: getattr(setting.config, key) for key in ("listen", "workers", "storage")}
    logs.configure(worker.config.log)
    group = replace(setting.group, counts=shared.table(worker.slot))
    return replace(setting, config=worker.config.model_copy(update=fixed), group=group)


def _take_open_files() -> None:
    """Raise the limit of open files as far as it goes: each client of a blob needs two, and the usual limit is 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _serve_here(setting: _Setting, worker: Worker | None) -> None:
    store = Store(setting.config.storage)
    try:
        mirror = Mirror(setting.config, setting.path, store, setting.group)
        asyncio.run(_serve(mirror, setting, worker))
    finally:
        store.close()


async def _serve(mirror: Mirror, setting: _Setting, worker: Worker | None) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(_LOOKUPS, thread_name_prefix="lookups"))

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
    # A supervisor has had them blocked until there was somebody to hear them.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
    if worker is not None:
        # Who supervises is gone: nobody would ever stop this process.
        loop.add_reader(worker.lifeline, orphaned)
    ready = worker.ready if worker is not None else (lambda: notify("READY=1", f"STATUS=Serving on {setting.config.listen}"))
    await mirror.serve(setting.registry_socket, setting.admin_socket, stop, ready)


def _reloader(mirror: Mirror) -> Callable[[], None]:
    reloads: set[asyncio.Task[None]] = set()

    async def reload() -> None:
        notify("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")
        await mirror.reload()
        notify("READY=1")

    def begin() -> None:
        task = asyncio.get_running_loop().create_task(reload())
        reloads.add(task)
        task.add_done_callback(reloads.discard)

    return begin
