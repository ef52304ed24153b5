"""What the admin address can have done, on this process's store and graph."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import structlog

from mirror.admin.api import Readiness
from mirror.core.errors import InvalidRegistry
from mirror.core.image_selector import ImageSelector
from mirror.core.names import ImagePattern, Repository, Tag, canonical_registry
from mirror.download.downloads import Downloads
from mirror.maintenance.purge import Order as PurgeOrder
from mirror.maintenance.purge import Purge, Purged
from mirror.metrics import Metrics
from mirror.service.graph import Graph
from mirror.service.worker_stats import Problems, WorkerStats
from mirror.storage.images import Image, images
from mirror.storage.store import Store
from mirror.sync.job import Order, by_operator, by_webhook
from mirror.upstream.login import Login

log = structlog.get_logger(__name__)

# Orders that may wait; each is a row of the ledger.
_MAX_ORDERS = 1000
# Upstream tells of a push before everything there answers so. Seconds.
_LOOK_AGAIN = 15.0


class AdminOperations:
    """Carries out what operators ask for.

    Args:
        graph: called for the graph of the day.
        draining: whether the mirror is about to stop.
        files: called for what is the matter with files that are followed, by their keys.
    """

    def __init__(
        self,
        store: Store,
        downloads: Downloads,
        metrics: Metrics,
        worker_stats: WorkerStats,
        graph: Callable[[], Graph],
        draining: Callable[[], bool],
        files: Callable[[], dict[str, str]],
    ) -> None:
        self._store = store
        self._downloads = downloads
        self._metrics = metrics
        self._worker_stats = worker_stats
        self._graph = graph
        self._draining = draining
        self._files = files
        self._accounts: set[str] = set()

    def readiness(self) -> Readiness:
        """Ready while the store can be written, the configured accounts are taken, and nobody wants us to stop."""
        graph, writable, draining = self._graph(), self._store.is_writable(), self._draining()
        upstreams = {
            f"{name} {upstream.name}": upstream.state
            for name, registry in graph.registries.items()
            for upstream in registry.upstreams
        }
        problems = self._worker_stats.problems(self._own_problems())
        entries = graph.config.registries
        hindered = any(name in entries and not entries[name].anonymous_fallback for name in problems["credentials"])
        details = {"draining": draining, "store_writable": writable, **problems, "upstreams": upstreams}
        return Readiness(writable and not draining and not hindered, details)

    def metrics(self) -> bytes:
        """The metrics of all processes."""
        used, blobs = self._store.quota.figures()
        self._metrics.storage_bytes.set(used)
        self._metrics.storage_blobs.set(blobs)
        self._metrics.storage_limit_bytes.set(self._store.quota.max_size)
        self.publish()
        return self._worker_stats.metrics()

    def publish(self) -> None:
        """Let the other processes know what this one has counted."""
        self._show_credentials()
        self._worker_stats.publish(self._own_downloads(), self._own_problems())

    def downloads(self) -> list[dict[str, Any]]:
        """What is being fetched, in all processes."""
        return self._worker_stats.downloads(self._own_downloads())

    def images(self, pattern: ImagePattern | None) -> list[Image]:
        """What is held of which image."""
        return images(self._store.files, self._store.index, pattern)

    def purge(self, order: PurgeOrder) -> Purged:
        """Take images out of the store."""
        purged = Purge(self._store.files, self._store.index, self._store.generation).carry_out(order)
        if not order.dry_run:
            self._metrics.purged_bytes.inc(purged.size)
        return purged

    # ---- syncing

    def order_sync(self, images: list[str]) -> str | None:
        """Have held images looked at now."""
        for text in images:
            self.pattern(text)
        return self._order(by_operator("sync", tuple(images)))

    def order_warm(self, images: list[str], platforms: list[str]) -> str | None:
        """Have images brought here."""
        graph = self._graph()
        for text in images:
            registry = ImageSelector.parse(text, canonical_registry(graph.config.default_registry)).repository.registry
            if registry not in graph.registries:
                raise InvalidRegistry(registry, f"not mirrored here; there are {', '.join(sorted(graph.registries))}")
        return self._order(by_operator("warm", tuple(images), tuple(platforms)))

    def pushed(self, repository: Repository, tag: Tag) -> bool:
        """Have a tag looked at that upstream says was pushed; False if it is not held here and not configured."""
        configured = any(wanted.repository == repository and wanted.may_mean(tag) for wanted in self._graph().config.wanted())
        if not configured and self._store.index.tags.get(repository, tag) is None:
            return False
        orders = by_webhook(f"{repository}:{tag}", _LOOK_AGAIN)
        return all(self._order(order) is not None for order in orders)

    def _order(self, order: Order) -> str | None:
        jobs = self._store.jobs
        if jobs.waiting() >= _MAX_ORDERS or not jobs.put_order(order.name, order.row()):
            log.warning("order_refused", order=order.name, most=_MAX_ORDERS)
            return None
        return order.name

    def sync_state(self) -> dict[str, Any]:
        """What runs, waits, and has come to its end."""
        jobs = self._store.jobs
        running = [run for run in jobs.state("running", list) if isinstance(run, dict) and "name" in run]
        begun = {run["name"] for run in running}
        orders = ((Order.read(name, row), row.get("more", 0)) for name, row in jobs.orders() if name not in begun)
        return {
            "running": running,
            "waiting": [{"name": order.name, **order.row(), "more": more} for order, more in orders if order is not None],
            "last": {kind: jobs.state(f"last {kind}", dict) or None for kind in ("schedule", "sync", "warm")},
            "next": jobs.state("schedule", dict).get("next") if self._graph().config.sync.interval else None,
        }

    def sync_order(self, name: str) -> dict[str, Any] | None:
        """How far an order is."""
        state = self.sync_state()
        found = self._store.jobs.done(name)
        if found is None:
            found = next((run for run in state["running"] if run["name"] == name), None)
        if found is None:
            found = next(({**order, "result": "waiting"} for order in state["waiting"] if order["name"] == name), None)
        return found

    def sync_results(self) -> dict[str, dict[str, Any]]:
        """What came of each image last."""
        return dict(self._store.jobs.results())

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def pattern(self, text: str) -> ImagePattern:
        """Read a pattern as operators of this mirror write it."""
        return ImagePattern.parse(text, canonical_registry(self._graph().config.default_registry))

    def _show_credentials(self) -> None:
        gauge, refused = self._metrics.upstream_credentials_ok, self._own_problems()["credentials"]
        accounts = {name for name, entry in self._graph().config.registries.items() if entry.username is not None}
        # A reload may have taken an account away, and two threads may find that at once.
        for name in self._accounts - accounts:
            with contextlib.suppress(KeyError):
                gauge.remove(name)
        self._accounts = accounts
        for name in accounts:
            gauge.labels(name).set(0 if name in refused else 1)

    def _own_problems(self) -> Problems:
        credentials = {}
        for name, registry in self._graph().registries.items():
            if found := [
                f"{upstream.name}: {_worded(upstream.login)}" for upstream in registry.upstreams if upstream.login.problem
            ]:
                credentials[name] = "; ".join(found)
        return {"credentials": credentials, "files": self._files()}

    def _own_downloads(self) -> list[dict[str, Any]]:
        return [
            {
                "digest": str(download.digest),
                "state": download.state.name,
                "bytes": download.received,
                "size": download.size,
                "readers": download.readers,
            }
            for download in self._downloads
        ]


def _worded(login: Login) -> str:
    return f"{login.problem}{'; pulls go on without the account' if login.anonymous_fallback else ''}"
