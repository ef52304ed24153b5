"""The operations of the admin address on the store, the downloads, and the state of this mirror."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client.exposition import generate_latest

from mirror import __version__
from mirror.admin.checks import check_accounts, clock_skews, credential_problems, host_checks
from mirror.admin.download_figures import DownloadFigures, merged
from mirror.admin.explanations import describe, describe_bucket
from mirror.admin.held_back import HeldBack
from mirror.admin.registry_storage import RegistryStorage
from mirror.admin.status import MetricValues, bucket_figures, removal_figures, request_figures, upstream_figures
from mirror.admin.worker_stats import Encode, Problems, WorkerStats
from mirror.cache.cache import Cache
from mirror.cache.explainer import Explanation
from mirror.config.model import Config
from mirror.core.checks import Check, check_clock, check_reload
from mirror.core.names import ImageName, ImagePattern
from mirror.download.downloads import Downloads
from mirror.errors import StorageError
from mirror.listener.registry_listener import RegistryListener
from mirror.maintenance.purge import Purge, PurgeRequest, PurgeResult
from mirror.metrics import Metrics
from mirror.storage.images import Image, find_images, images
from mirror.storage.store import Store
from mirror.upstream.registry import Registry
from mirror.upstream.upstream import Upstream

if TYPE_CHECKING:
    from mirror.cluster.node import ClusterNode
    from mirror.maintenance.cluster_purge import ClusterPurge
    from mirror.objects.objects import Objects


@dataclass(frozen=True)
class Readiness:
    """Whether requests should be sent here.

    Attributes:
        ready: False while the store cannot be written, an upstream refuses the configured account, or the mirror is stopping.
        details: the reason, and what does not make a mirror unready: the state of upstreams and of files that are reread.
    """

    ready: bool
    details: dict[str, Any]


class AdminOperations:
    """Outlives reloads. Each method but `configure` and `explain` blocks on files: call it in a thread.

    Args:
        listener: of the registry address, which knows the files that it cannot use.

    Attributes:
        draining: the mirror is stopping.
        reload_problem: why the last reload failed in this process; None if it did not.
        registry_storage: what each registry takes in the store.
        held_back: the tags that are held back.
        node: this node's part in a cluster; None if there is none.
        objects: the bucket behind the store; None if there is none.
        cluster_purge: purges the other nodes; None if there are none.
    """

    def __init__(
        self, store: Store, downloads: Downloads, metrics: Metrics, worker_stats: WorkerStats, listener: RegistryListener
    ) -> None:
        self.draining = False
        self.reload_problem: str | None = None
        self.node: ClusterNode | None = None
        self.objects: Objects | None = None
        self.cluster_purge: ClusterPurge | None = None
        self._store = store
        self._downloads = DownloadFigures(downloads, store.index)
        self._metrics = metrics
        self._worker_stats = worker_stats
        self._listener = listener
        self.registry_storage = RegistryStorage(store.quota, metrics)
        self.held_back = HeldBack(metrics)
        self._accounts: set[str] = set()

    def configure(self, config: Config, cache: Cache) -> None:
        """Use a configuration and what was built from it from now on."""
        self._config = config
        self._registries = cache.context.registries
        self._explainer = cache.explainer
        self.catalog = cache.catalog
        self.held_back.configure(config, cache.held_tags)
        # Another configuration has other accounts.
        self._metrics.check_ok.clear()

    def readiness(self) -> Readiness:
        """Ready if the store is writable, the mirror is not draining, and upstreams accept the accounts that pulls depend on."""
        writable, draining = self._store.is_writable(), self.draining
        own = self._own_problems()
        problems, states = self._worker_stats.problems(own), self._worker_stats.upstream_states(own)
        upstreams = {key: states.get(key, upstream.state) for key, upstream in self._upstreams().items()}
        entries = self._config.registries
        blocked = any(name in entries and not entries[name].anonymous_fallback for name in problems["credentials"])
        checks = {check.name: {"ok": check.ok, "text": check.text} for check in self._check(problems)}
        details: dict[str, Any] = {
            "draining": draining,
            "store_writable": writable,
            "credentials": problems["credentials"],
            "files": problems["files"],
            "checks": checks,
            "upstreams": upstreams,
        }
        if self.node is not None:
            details["cluster"] = self.node.describe()
        if self.objects is not None:
            details["cluster"] = {**details.get("cluster", {}), **self.objects.describe()}
        return Readiness(writable and not draining and not blocked, details)

    def check(self) -> list[Check]:
        """Check what is around the mirror, and set the metric of each check."""
        return self._check(self._worker_stats.problems(self._own_problems()))

    def _check(self, problems: Problems) -> list[Check]:
        """Check, given the problems of all processes: each asks its upstreams itself."""
        registries = self._registries.values()
        clock = [Check("clock", ok=False, text=text) for text in problems["clock"].values()]
        checks = [
            *host_checks(self._config),
            *check_accounts(self._config, registries, problems["credentials"]),
            *(clock or [check_clock(clock_skews(registries))])[:1],
            check_reload(self.reload_problem or self._worker_stats.reload_problem),
        ]
        for check in checks:
            self._metrics.check_ok.labels(check.name).set(1 if check.ok else 0)
        return checks

    def metrics(self, encode: Encode = generate_latest) -> bytes:
        """Return the metrics of all processes, by default in Prometheus's text format."""
        return self._metrics_with(self.readiness(), encode)

    def _metrics_with(self, readiness: Readiness, encode: Encode) -> bytes:
        used, blobs = self._store.quota.figures()
        self._metrics.storage_bytes.set(used)
        self._metrics.storage_blobs.set(blobs)
        self._metrics.storage_limit_bytes.set(self._store.quota.max_size)
        self._metrics.storage_min_free_bytes.set(self._store.quota.min_free)
        with contextlib.suppress(StorageError):
            self._metrics.storage_free_bytes.set(self._store.quota.disk_free())
        self.registry_storage.update_metrics()
        self.held_back.update_metrics()
        self._metrics.ready.set(readiness.ready)
        self.publish()
        return self._worker_stats.metrics(encode)

    def publish(self) -> None:
        """Write this process's figures for the other processes."""
        self._update_credentials_metric()
        self._metrics.forget_pull_limits()
        self._metrics.config_reload_ok.set((self.reload_problem or self._worker_stats.reload_problem) is None)
        self._worker_stats.publish(self._downloads.own(), self._own_problems(), self._own_troubles())

    def status(self) -> dict[str, Any]:
        """Return the figures of the status screen."""
        readiness = self.readiness()
        values = MetricValues(self._metrics_with(readiness, generate_latest).decode())
        jobs, quota = self._store.jobs, self._store.quota
        return {
            "version": __version__,
            "ready": readiness.ready,
            **{key: readiness.details[key] for key in ("draining", "store_writable", "credentials", "files", "checks")},
            "store": {
                "path": self._store.layout.root,
                "bytes": values.value("storage_bytes"),
                "max_size": quota.max_size,
                "blobs": values.value("storage_blobs"),
                "free": values.value("storage_free_bytes"),
                "min_free": quota.min_free,
                **removal_figures(values),
            },
            "objects": None if self.objects is None else bucket_figures(values, self.objects.reader.bucket.problem),
            "registries": self.registry_storage.figures(),
            "requests": request_figures(values),
            "upstreams": upstream_figures(values, readiness.details["upstreams"]),
            "offline": sorted(self._config.offline_registries),
            "held_back": self.held_back.figures(),
            "downloads": self.downloads(),
            "troubles": self._worker_stats.troubles(self._own_troubles()),
            "sync": {
                "last": jobs.state("last schedule", dict) or None,
                "next_run": jobs.state("schedule", dict).get("next") if self._config.sync.interval else None,
            },
        }

    def traffic(self) -> dict[str, Any]:
        """Return the counts of pulls and bytes of all processes since the start."""
        return request_figures(MetricValues(self.metrics().decode()))

    def sample_downloads(self) -> None:
        """Follow how fast the downloads of this process proceed. Only one thread at a time may call it, every second or so."""
        self._downloads.sample(time.monotonic())

    def downloads(self) -> list[dict[str, Any]]:
        """Return the downloads of all processes, each blob once."""
        return merged(self._worker_stats.downloads(self._downloads.own()))

    async def explain(self, text: str) -> dict[str, Any]:
        """Return what is known of an image, and what a pull of it would do now.

        Raises:
            InvalidInput: it is no image.
            NotFound: its registry is not mirrored.
        """
        name = ImageName.parse(text, self._config.default_registry)
        explanation = await self._explainer.explain(name.repository, name.reference)
        # Before the next wait, so that it agrees with the forecast.
        upstreams = self._upstreams_of(self._registries[name.repository.registry])
        downloads = await asyncio.to_thread(self.downloads)
        sync = await asyncio.to_thread(self._sync_facts, name)
        upstreams = await asyncio.to_thread(self._with_latest, name.repository.registry, upstreams)
        objects = await self._in_bucket(explanation)
        return {**describe(explanation, downloads), "upstreams": upstreams, "sync": sync, "objects": objects}

    async def _in_bucket(self, explanation: Explanation) -> dict[str, Any] | None:
        if self.objects is None:
            return None
        inventory = self.objects.inventory
        found = await inventory.image(explanation.repository, explanation.reference, explanation.digest)
        return describe_bucket(found)

    def _upstreams_of(self, registry: Registry) -> list[dict[str, Any]]:
        following = registry.next_upstream("manifest", "GET")
        return [
            {
                "name": upstream.name,
                "state": upstream.state,
                "next": upstream is following,
            }
            for upstream in registry.upstreams
        ]

    def _with_latest(self, registry: str, upstreams: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return upstreams as `status` tells of them: with what the process has heard that asked last."""
        states = self._worker_stats.upstream_states(self._own_problems())
        left = MetricValues(self.metrics().decode()).value("upstream_ratelimit_remaining", registry=registry)
        return [{**one, "state": states.get(f"{registry} {one['name']}", one["state"]), "pulls_left": left} for one in upstreams]

    def _sync_facts(self, name: ImageName) -> dict[str, Any]:
        jobs, image = self._store.jobs, f"{name.repository}{'@' if name.digest else ':'}{name.reference}"
        return {
            "kept": image in jobs.kept_images(),
            "last": jobs.result(image),
            "next_run": jobs.state("schedule", dict).get("next") if self._config.sync.interval else None,
        }

    def images(self, pattern: ImagePattern | None) -> Iterator[Image]:
        """Yield the cached images that match a pattern, by repository; None matches all."""
        return images(self._store.files, self._store.index, pattern)

    def named_images(self, names: list[str]) -> Iterator[Image]:
        """Yield the images with the names (`Image.name`), without those that are not cached any more."""
        return find_images(self._store.files, self._store.index, names)

    def purge(self, request: PurgeRequest) -> PurgeResult:
        """Remove images from the store."""
        purged = Purge(self._store.files, self._store.index, self._store.generation).carry_out(request)
        if not request.dry_run:
            self._metrics.purged_bytes.inc(purged.size)
        return purged

    def pattern(self, text: str) -> ImagePattern:
        """Parse a pattern; names without a registry belong to the default one. Raises InvalidInput."""
        return ImagePattern.parse(text, self._config.default_registry)

    def _update_credentials_metric(self) -> None:
        gauge, refused = self._metrics.upstream_credentials_ok, self._own_problems()["credentials"]
        accounts = {name for name, entry in self._config.registries.items() if entry.username is not None}
        # A reload may have removed an account, and two threads may remove its gauge at the same time.
        for name in self._accounts - accounts:
            with contextlib.suppress(KeyError):
                gauge.remove(name)
        self._accounts = accounts
        for name in accounts:
            gauge.labels(name).set(0 if name in refused else 1)

    def _own_problems(self) -> Problems:
        registries = self._registries.values()
        clock = check_clock(clock_skews(registries))
        return {
            "credentials": credential_problems(registries),
            "files": self._listener.problems,
            "clock": {} if clock.ok else {"clock": clock.text},
            "upstreams": {key: one.state for key, one in self._upstreams().items() if one.health.was_asked},
        }

    def _upstreams(self) -> dict[str, Upstream]:
        return {
            f"{name} {upstream.name}": upstream for name, registry in self._registries.items() for upstream in registry.upstreams
        }

    def _own_troubles(self) -> list[dict[str, Any]]:
        return [
            {
                "image": trouble.image,
                "outcome": "ERROR" if trouble.answer.outcome is None else trouble.answer.outcome.value,
                "time": trouble.answer.when,
                "cause": trouble.answer.cause,
                "times": trouble.times,
            }
            for trouble in self._explainer.troubles()
        ]
