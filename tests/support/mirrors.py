"""A whole mirror in the test's own process and event loop, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from pathlib import Path
from typing import Any, Self
from unittest import mock

import aiohttp
import pytest

from mirror.config.model import Config
from mirror.listener.sockets import listen
from mirror.service.log_writer import Event, LogWriter
from mirror.service.mirror import Mirror
from mirror.service.services import WorkerGroup
from tests.support.names import sha256
from tests.support.new_stores import open_store
from tests.support.waiting import LIMIT, eventually

SHARED = pytest.mark.asyncio(loop_scope="module")
"""Marks a test that uses `shared_mirror`."""


class MirrorUnderTest:
    """Starts a mirror with a configuration for tests, and asks it things.

    Attributes:
        store_path: where its store lies; survives `restart`.
        requests: the lines of its access log.
    """

    def __init__(self, hub: Any, store_path: Path, **settings: Any) -> None:
        self.hub = hub
        self.store_path = store_path
        self.settings = settings
        self._stack = contextlib.AsyncExitStack()

    def config(self) -> Config:
        values: dict[str, Any] = {
            "listen": "127.0.0.1:0",
            "admin": {"listen": "127.0.0.1:0"},
            "storage": {"path": str(self.store_path), "min_free": "0"},
            "registries": {"docker.io": {"upstreams": [self.hub.url], "token_hosts": [self.hub.token_host]}},
            "downloads": {"stall_timeout": "90s", "connect_timeout": "10s", "prefetch": False},
            "sync": {"interval": "0"},
            "log": {"level": "warning"},
        }
        for key, value in self.settings.items():
            values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
        return Config(**values)

    async def __aenter__(self) -> Self:
        config = self.config()
        sockets = listen("listen", config.listen), listen("admin.listen", config.admin.listen)
        self.port, self.admin_port = (sock.getsockname()[1] for sock in sockets)
        self.store = open_store(config.storage)
        self.requests: list[dict[str, Any]] = []
        self.mirror = Mirror(config, None, self.store, WorkerGroup(log=_Lines(self.requests)))
        self._stop = asyncio.Event()
        node = listen("cluster.listen", config.cluster.listen) if config.cluster.is_enabled else None
        self._task = asyncio.create_task(self.mirror.serve(*sockets, self._stop, node_socket=node))
        self.session = aiohttp.ClientSession(auto_decompress=False, timeout=aiohttp.ClientTimeout(total=LIMIT))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()
        self.stop()
        await self.stopped()
        self.store.close()

    def stop(self) -> None:
        """Stop it as SIGTERM does."""
        self._stop.set()

    async def stopped(self) -> None:
        """Wait until it has stopped."""
        await asyncio.wait_for(self._task, LIMIT)

    # ---- its parts: the only place of the tests that knows where they are kept

    @property
    def services(self) -> Any:
        """What a reload leaves alone (mirror.service.services)."""
        return self.mirror._services

    @property
    def graph(self) -> Any:
        """What a reload replaces (mirror.service.graph)."""
        return self.mirror._current.graph

    @property
    def retired(self) -> Any:
        """The graphs that reloads have replaced and that are still used."""
        return self.mirror._current.retired

    @property
    def downloads(self) -> Any:
        """The downloads that are under way."""
        return self.services.downloads

    @property
    def usage(self) -> Any:
        """When what is cached was used last."""
        return self.services.cache.usage

    @property
    def admin_routes(self) -> list[Any]:
        """The routes of the admin address."""
        return list(self.mirror._admin_listener._runner.app.router.routes())

    @property
    def sync_operations(self) -> Any:
        """What the admin address does for syncing."""
        return self.mirror._sync_operations

    @property
    def listener(self) -> Any:
        """What listens at the registry address."""
        return self.mirror._registry_listener.listener

    @property
    def peers(self) -> list[Any]:
        """The client addresses that are connected."""
        return list(self.listener._admission.limiter._peers.values())

    @property
    def client_connections(self) -> tuple[int, int]:
        """How many connections of clients are open, and how many are being turned away."""
        limiter = self.listener._admission.limiter
        return limiter._connections.total, limiter._turned_away

    @property
    def handlers(self) -> list[Any]:
        """The protocols of the connections that are open."""
        return list(self.listener._server.connections)

    @property
    def inline_heads(self) -> list[bytes]:
        """The heads of requests that are answered inline."""
        return list(self.graph.api.inline._requests)

    @property
    def cached_lists(self) -> Any:
        """The lists of tags and referrers that are kept."""
        return self.graph.cache.listings._cached

    def begin_earlier(self, *, minutes: int) -> None:
        """Have it be as if it had been started earlier."""
        self.mirror._traffic._started -= minutes * 60 * 10**9

    def partial(self, digest: Any) -> Any:
        """The partial file of a download that is under way."""
        return self.download(digest)._partial

    def quiet_quota(self) -> Any:
        """A context in which no process reserves or releases space."""
        return self.store.quota._file.change()

    @property
    def in_progress(self) -> int:
        """How many requests at the registry address are under way."""
        return int(self.mirror._registry_listener.in_progress)

    def registry(self, name: str = "docker.io") -> Any:
        """A registry that it mirrors."""
        return self.graph.registries[name]

    def upstream(self, registry: str = "docker.io") -> Any:
        """The first upstream of a registry."""
        return self.registry(registry).upstreams[0]

    def set_limits(self, **limits: float) -> None:
        """Change limits of the traffic with upstreams (mirror.upstream.http.Limits), until a reload."""
        http = self.graph.http
        http.limits = dataclasses.replace(http.limits, **limits)

    def url(self, path: str) -> str:
        return f"{'https' if 'tls' in self.settings else 'http'}://127.0.0.1:{self.port}{path}"

    async def reload(self, **settings: Any) -> None:
        """Have it read a configuration in which these sections are changed."""
        self.settings = {**self.settings, **settings}
        config = self.config()
        # The log belongs to all tests.
        with mock.patch("mirror.service.mirror.load", return_value=config), mock.patch("mirror.service.logs.configure"):
            await self.mirror.reload()

    async def get(self, path: str, method: str = "GET", **kwargs: Any) -> Answer:
        """The whole answer."""
        async with self.session.request(method, self.url(path), **kwargs) as response:
            return Answer(response.status, response.headers, await response.read())

    async def head(self, path: str, **kwargs: Any) -> Answer:
        return await self.get(path, "HEAD", **kwargs)

    async def metrics(self) -> dict[str, float]:
        """Every sample of /metrics by its name with labels."""
        url, plain = f"http://127.0.0.1:{self.admin_port}/metrics", {"Accept-Encoding": "identity"}
        async with self.session.get(url, headers=plain) as response:
            text = await response.text()
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of all samples of a family that have these labels."""
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(
            value
            for sample, value in (await self.metrics()).items()
            if sample.partition("{")[0] == f"registry_mirror_{name}" and all(w in sample for w in wanted)
        )

    async def recovered(self) -> None:
        """Wait until every upstream that was out of order has been found to be back."""
        await eventually(self.metrics, holds=lambda seen: all(value for name, value in seen.items() if "_upstream_up{" in name))

    def holds(self, digest: object) -> bool:
        """Whether a blob lies in the store under its final name."""
        return self.blob_path(digest).exists()

    def blob_path(self, digest: object) -> Path:
        algorithm, _, encoded = str(digest).partition(":")
        return self.store_path / "blobs" / algorithm / encoded[:2] / encoded

    def partials(self) -> list[Path]:
        return [path for path in (self.store_path / "partial").rglob("*") if path.is_file()]

    def download(self, digest: object) -> Any:
        """The download of a blob that is under way."""
        return next(d for d in self.downloads if str(d.digest) == str(digest))

    async def idle(self) -> None:
        """Wait until no download is under way."""
        await eventually(lambda: not len(self.downloads))


class _Lines(LogWriter):
    """Keeps the lines of the access log."""

    def __init__(self, lines: list[dict[str, Any]]) -> None:
        super().__init__()
        self._kept = lines

    def put(self, event: Event) -> None:
        self._kept.append(event)


class Answer:
    """A response that has been read to its end."""

    def __init__(self, status: int, headers: Any, body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    @property
    def cache(self) -> str | None:
        return self.headers.get("X-Cache")

    @property
    def sha256(self) -> str:
        return sha256(self.body)

    def code(self) -> str:
        """The code of an error answer."""
        import json

        return json.loads(self.body)["errors"][0]["code"]
