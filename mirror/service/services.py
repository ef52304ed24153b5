"""What outlives a reload: the store, and everything that works on it for whichever graph is current."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from mirror.cache.access_index import AccessIndex
from mirror.cache.prefetch import share
from mirror.cache.tag_policy import TagPolicies
from mirror.cache.usage import Usage
from mirror.config.model import Config
from mirror.core.counts import CountTable
from mirror.download.downloads import Downloads
from mirror.download.services import DownloadServices, Policy
from mirror.download.shares import Shares
from mirror.maintenance.eviction import Eviction
from mirror.maintenance.janitor import Janitor
from mirror.maintenance.recheck import Recheck
from mirror.maintenance.repeats import Repeats
from mirror.maintenance.scrub import Scrub
from mirror.metrics import Metrics
from mirror.storage.store import Store
from mirror.sync.notifier import Notifier
from mirror.sync.scheduler import SyncScheduler, SyncServices
from mirror.tracing import ViaChain
from mirror.upstream.connections import Connections
from mirror.upstream.webhook import Webhook


@dataclass(frozen=True)
class WorkerGroup:
    """The processes that are one mirror.

    Attributes:
        size: how many share the ports and the store.
        board: directory in which they tell each other what they have counted; None if there is only this one.
        trail: what all of them are known by to other mirrors.
        repeats: which client has lately been given which blob; made before the processes are forked.
        counts: what all of them have under way together, seen from this one.
    """

    size: int = 1
    worker_stats: Path | None = None
    via_chain: ViaChain = field(default_factory=lambda: ViaChain(os.urandom(8).hex()))
    repeats: Repeats = field(default_factory=Repeats)
    counts: CountTable = field(default_factory=CountTable.private)


class Services:
    """The parts of one process that a reload leaves alone.

    Args:
        policies: returns the current rules for tags.
        means: returns what syncing works with currently.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        group: WorkerGroup,
        policies: Callable[[], TagPolicies],
        sync_services: Callable[[], SyncServices],
    ) -> None:
        self.store = store
        self.group = group
        self.metrics = Metrics()
        self.usage = Usage()
        self.access = AccessIndex(store.index, store.generation, store.threads.note)
        self.sync_scheduler = SyncScheduler(store.layout, store.index, store.jobs, self.metrics, sync_services)
        scrub = self._build_scrub(config)
        self.recheck = Recheck(scrub, group.repeats)
        self.janitor = self._build_janitor(scrub, policies)
        self.connections = Connections(group.counts)
        shares = Shares(group.counts)
        self.downloads = Downloads(self._services(config), shares, lambda result: self.metrics.downloads.labels(result).inc())
        self.metrics.downloads_in_progress.set_function(lambda: len(self.downloads))
        self.metrics.download_readers.set_function(lambda: self.downloads.readers)
        self.notifier = Notifier(store.files, store.threads.write, lambda result: self.metrics.notifications.labels(result).inc())

    def configure(self, config: Config) -> None:
        """Do as a configuration says from now on."""
        connections, notify = config.downloads.max_upstream_connections, config.sync.notify
        self.connections.configure(connections, share(connections))
        self.downloads.shares.configure(connections, config.limits.downloads_per_address)
        self.notifier.configure(None if notify.url is None else Webhook(notify.url, notify.secret_file))

    def _build_scrub(self, config: Config) -> Scrub:
        store = self.store
        return Scrub(
            store.layout,
            store.files,
            store.generation,
            config.storage.scrub_interval,
            lambda result: self.metrics.scrubbed_blobs.labels(result).inc(),
        )

    def _build_janitor(self, scrub: Scrub, policies: Callable[[], TagPolicies]) -> Janitor:
        store = self.store
        eviction = Eviction(store.layout, store.files, store.generation)
        return Janitor(
            store.layout,
            store.files,
            store.index,
            eviction,
            scrub,
            self.usage,
            self.metrics,
            policies,
            self.sync_scheduler.kept,
        )

    def _services(self, config: Config) -> DownloadServices:
        return DownloadServices(
            self.store.layout,
            self.store.files,
            self.store.threads,
            Policy(fetchers=config.downloads.connections_per_blob),
            lambda reason: self.metrics.download_resumes.labels(reason).inc(),
            self.janitor.make_room,
        )
