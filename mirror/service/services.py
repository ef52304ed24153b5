"""What outlives a reload: the store, the metrics, the downloads, and the background work on them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import Counter

from mirror.cache.access_index import AccessIndex
from mirror.cache.context import CacheServices
from mirror.cache.prefetch import max_prefetches
from mirror.cache.tag_policy import TagPolicies
from mirror.cache.usage import Usage
from mirror.config.model import Config
from mirror.core.counts import CountTable
from mirror.download.downloads import Downloads
from mirror.download.services import DownloadLimits, DownloadServices
from mirror.download.shares import Shares
from mirror.errors import ConfigurationError
from mirror.maintenance.janitor import Janitor
from mirror.maintenance.recheck import Recheck
from mirror.maintenance.repeats import Repeats
from mirror.maintenance.scrub import Scrub
from mirror.metrics import Metrics
from mirror.service.log_writer import LogWriter
from mirror.storage.store import Store
from mirror.sync.notifier import Notifier
from mirror.tracing import ViaChain
from mirror.upstream.connections import Connections
from mirror.upstream.webhook import Webhook

if TYPE_CHECKING:
    from mirror.cluster.node import ClusterNode
    from mirror.objects.objects import Objects
    from mirror.otel import Tracing


@dataclass(frozen=True)
class WorkerGroup:
    """The processes that form one mirror.

    Attributes:
        size: how many processes share the ports and the store.
        worker_stats: directory in which each process publishes its metrics; None if there is only one process.
        via_chain: identifies this mirror to other mirrors.
        repeats: the blobs that clients have lately fetched; made before the fork, in shared memory.
        counts: connections, requests and downloads of all processes; this process's own view.
        log: writes the log of this process.
        started: when the mirror was started, in nanoseconds since the epoch.
        secret: of this run of the mirror, for sessions of the status page.
        node: the URL of this mirror for other nodes of its cluster; empty without one, or to find it out.
    """

    size: int = 1
    worker_stats: Path | None = None
    via_chain: ViaChain = field(default_factory=lambda: ViaChain(os.urandom(8).hex()))
    repeats: Repeats = field(default_factory=Repeats)
    counts: CountTable = field(default_factory=CountTable.private)
    log: LogWriter = field(default_factory=LogWriter)
    started: int = field(default_factory=time.time_ns)
    secret: bytes = field(default_factory=lambda: os.urandom(32), repr=False)
    node: str = ""


class Services:
    """The parts of one process that a reload keeps. `configure` must be called before they are used."""

    def __init__(self, config: Config, store: Store, group: WorkerGroup) -> None:
        self.store = store
        self.group = group
        self.metrics = metrics = Metrics()
        usage = Usage()
        interval = config.storage.scrub_interval
        scrub = Scrub(store.layout, store.files, store.generation, interval, _increment(metrics.scrubbed_blobs))
        self.recheck = Recheck(scrub, group.repeats)
        self.janitor = Janitor(store, scrub, usage, metrics, TagPolicies.configured(config))
        access = AccessIndex(store.index, store.generation, store.threads.note)
        self.connections = Connections(group.counts)
        self.tracing = _tracing(config.tracing.otlp_endpoint)
        self.downloads = downloads = self._build_downloads(config)
        self.node = self._build_node(config, access)
        self.objects = self._build_objects(config, access)
        reader = None if self.objects is None else self.objects.reader
        if self.objects is not None:
            usage.on_use = self.objects.uses.note
        room = self.janitor.make_room, self.janitor.make_registry_room
        self.cache = CacheServices(store, access, usage, metrics, *room, cluster=self.node, objects=reader)
        metrics.downloads_in_progress.set_function(lambda: len(downloads))
        metrics.download_readers.set_function(lambda: downloads.readers)
        self.notifier = Notifier(store.files, store.threads.write, _increment(metrics.notifications))
        self.notifier.shared = None if self.node is None else self.node.notices

    def configure(self, config: Config) -> None:
        """Use a configuration from now on."""
        connections, notify = config.downloads.max_upstream_connections, config.sync.notify
        self.connections.configure(connections, max_prefetches(connections), config.downloads.max_rate)
        self.downloads.shares.configure(connections, config.limits.downloads_per_address)
        self.notifier.configure(None if notify.url is None else Webhook(notify.url, notify.secret_file))
        self.janitor.policies = TagPolicies.configured(config)
        self.store.quota.limits = {name: entry.max_size for name, entry in config.registries.items()}
        if self.node is not None:
            self.node.configure(config.registries)
        if self.objects is not None:
            self.objects.configure(config.registries)

    def _build_node(self, config: Config, access: AccessIndex) -> ClusterNode | None:
        if not config.cluster.is_enabled:
            return None
        try:
            from mirror.service.cluster import build_node  # noqa: PLC0415 - only a node needs it, and the extra `cluster`
        except ModuleNotFoundError as error:
            raise ConfigurationError(
                [f"cluster: {error.name} is missing: pip install 'registry-mirror[cluster]' installs it"]
            ) from error
        return build_node(config, self, access, self.downloads)

    def _build_objects(self, config: Config, access: AccessIndex) -> Objects | None:
        if not config.objects.is_enabled:
            return None
        from mirror.service.objects import build_objects  # noqa: PLC0415 - only a bucket needs it, and the extra `cluster`

        return build_objects(config.objects, self, access.record_published)

    def _build_downloads(self, config: Config) -> Downloads:
        services = DownloadServices(
            self.store.layout,
            self.store.files,
            self.store.threads,
            DownloadLimits(fetchers=config.downloads.connections_per_blob, parallel_from_bytes=config.downloads.parallel_from),
            _increment(self.metrics.download_resumes),
            self.janitor.make_room,
        )
        return Downloads(services, Shares(self.group.counts), _increment(self.metrics.downloads))


def _tracing(endpoint: str | None) -> Tracing | None:
    if endpoint is None:
        return None
    # An extra, which need not be installed, and a fifth of a second of imports.
    from mirror.otel import Tracing  # noqa: PLC0415

    return Tracing(endpoint)


def _increment(counter: Counter) -> Callable[[str], None]:
    """Return a function that increments a counter's child by its only label."""

    def increment(label: str) -> None:
        counter.labels(label).inc()

    return increment
