"""Every metric of the mirror. Labels are bounded: never a repository, tag or digest."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, disable_created_metrics

from mirror import __version__
from mirror.core.staleness import TABLE
from mirror.metrics.request_counts import BOUNDS_S, RequestCounts


class Across(enum.Enum):
    """How the values of several processes for one gauge are combined."""

    SUM = "sum"
    """Each process has a part of the whole."""
    ASKED = "asked"
    """A state of the store: the value of the process that answers, which has just looked it up."""
    LATEST = "latest"
    """A state of an upstream, or of an account there: the value that was received last."""
    LEAST = "least"
    """1 only if no process has trouble."""
    LARGEST = "largest"
    """A time, or a value that is the same in all processes."""


# The times at which counters were created would double the number of series.
disable_created_metrics()  # type: ignore[no-untyped-call]

_PROCESS = {
    "process_virtual_memory_bytes": Across.SUM,
    "process_resident_memory_bytes": Across.SUM,
    "process_open_fds": Across.SUM,
    "process_max_fds": Across.SUM,
    "process_start_time_seconds": Across.LEAST,
}


# Frequent outcomes of requests to upstreams, and frequent reasons to resume a download.
_UPSTREAM_STATUSES = ("200", "206", "404", "429", "503", "connect", "timeout", "cancelled")
_RESUME_REASONS = ("connect", "timeout", "cut", "server_error", "protocol", "restart")


class Metrics:
    """The metric families of one process, in a registry of their own.

    Attributes:
        across: how the values of several processes are combined, by the name of the gauge.
        heard: when a pull limit was sent last, by registry, and when an upstream was asked last, by registry and upstream; in
            seconds since the epoch.
        requests: of clients.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.across: dict[str, Across] = {**_PROCESS}
        self.heard: dict[str, float] = {}
        # When a number of pulls left is out of date, by registry.
        self._window_ends: dict[str, float] = {}
        self.requests = RequestCounts()
        self.registry.register(self.requests)
        ProcessCollector(registry=self.registry)
        self._declare_upstreams()
        self._declare_downloads()
        self._declare_answers()
        self._declare_storage()
        self._declare_sync()
        self._declare_state()
        self._declare_cluster()

    def declare_registry(self, registry: str, upstreams: Iterable[str]) -> None:
        """Begin the series of a registry at 0, because Prometheus does not see an increase without a value before it."""
        self.requests.declare(registry)
        for reason in TABLE:
            if TABLE[reason].served:
                self.stale_served.labels(registry, reason)
        for result in ("signed", "unsigned", "wrong", "unavailable"):
            self.trust_verdicts.labels(registry, result)
        for upstream in upstreams:
            self.upstream_bytes.labels(registry, upstream)
            for kind in ("manifest", "blob"):
                for status in _UPSTREAM_STATUSES:
                    self.upstream_requests.labels(registry, upstream, kind, status)

    def forget_upstreams(self, registry: str) -> None:
        """Remove what is known of the state of a registry's upstreams, and of its pull limit: they are not asked any more."""
        for gauge in (self.upstream_up, self.upstream_ratelimit_limit, self.upstream_ratelimit_remaining):
            labels = [tuple(sample.labels.values()) for metric in gauge.collect() for sample in metric.samples]
            for values in labels:
                if values[0] == registry:
                    gauge.remove(*values)
                    self.heard.pop(" ".join(values), None)
        self._window_ends.pop(registry, None)

    def pull_limit(self, registry: str, limit: int | None, remaining: int | None, window: float) -> None:
        """Record a registry's pull limit as far as a response states it.

        Args:
            window: seconds; after them it is not known how many pulls are left.
        """
        if limit is not None:
            self.upstream_ratelimit_limit.labels(registry).set(limit)
        if remaining is not None:
            self.upstream_ratelimit_remaining.labels(registry).set(remaining)
            self._window_ends[registry] = time.time() + window
        if (limit, remaining) != (None, None):
            self.heard[registry] = time.time()

    def forget_pull_limits(self) -> None:
        """Drop the numbers of pulls left whose window has ended."""
        for registry, end in list(self._window_ends.items()):
            # Another thread may do the same.
            if end <= time.time() and self._window_ends.pop(registry, None) is not None:
                self.upstream_ratelimit_remaining.remove(registry)

    def upstream_asked(self, registry: str, upstream: str, *, up: bool) -> None:
        """Record whether an upstream has answered a request."""
        self.upstream_up.labels(registry, upstream).set(up)
        self.heard[f"{registry} {upstream}"] = time.time()

    def _declare_upstreams(self) -> None:
        self.upstream_requests = self._counter(
            "upstream_requests", "Requests to upstreams", "registry", "upstream", "kind", "status"
        )
        self.upstream_bytes = self._counter("upstream_bytes", "Bytes of bodies from upstreams", "registry", "upstream")
        self.upstream_duration = self._histogram(
            "upstream_duration_seconds", "Until an upstream's headers", "registry", "upstream", "kind"
        )
        self.upstream_up = self._gauge("upstream_up", Across.LATEST, "1 if the last request was answered", "registry", "upstream")
        self.upstream_ratelimit_limit = self._gauge("upstream_ratelimit_limit", Across.LATEST, "Pulls per window", "registry")
        self.upstream_ratelimit_remaining = self._gauge("upstream_ratelimit_remaining", Across.LATEST, "Pulls left", "registry")
        self.upstream_credentials_ok = self._gauge(
            "upstream_credentials_ok", Across.LEAST, "0 while an upstream refuses the configured credentials", "registry"
        )

    def _declare_downloads(self) -> None:
        self.downloads_in_progress = self._gauge("downloads_in_progress", Across.SUM, "Blobs being fetched")
        self.download_readers = self._gauge("download_readers", Across.SUM, "Requests that read from a blob being fetched")
        self.downloads = self._counter("downloads", "Downloads that ended", "result")
        self.download_resumes = self._counter("download_resumes", "Downloads that went on after a break", "reason")
        self.prefetched_blobs = self._counter("prefetched_blobs", "Blobs of manifests that clients had just been given", "result")
        for reason in _RESUME_REASONS:
            self.download_resumes.labels(reason)
        for result in ("committed", "digest_mismatch", "failed", "bypassed"):
            self.downloads.labels(result)
        for result in ("fetched", "needless", "failed", "dropped"):
            self.prefetched_blobs.labels(result)

    def _declare_answers(self) -> None:
        self.stale_served = self._counter("stale_served", "Cached answers given in an outage", "registry", "reason")
        self.refused = self._counter("refused", "Requests and connections that this mirror turned away itself", "reason")
        self.trust_verdicts = self._counter("trust_verdicts", "Verdicts about the signatures of manifests", "registry", "result")
        self.renewed_files_ok = self._gauge(
            "renewed_files_ok",
            Across.LEAST,
            "0 while a file of tls or access cannot be used as it is on disk",
        )
        self.check_ok = self._gauge(
            "check_ok", Across.ASKED, "0 while a check fails: file system, certificate, account, clock, configuration", "check"
        )
        for reason in ("policy", "network", "credentials", "connections", "requests", "downloads", "host", "webhook"):
            self.refused.labels(reason)

    def _declare_storage(self) -> None:
        self.evicted_bytes = self._counter("evicted_bytes", "Bytes of blobs that were evicted", "reason")
        self.evicted_blobs = self._counter("evicted_blobs", "Blobs that were evicted", "reason")
        self.purged_bytes = self._counter("purged_bytes", "Bytes of blobs that were purged")
        self.scrubbed_blobs = self._counter("scrubbed_blobs", "Held blobs that were hashed again", "result")
        self.storage_bytes = self._gauge("storage_bytes", Across.ASKED, "Bytes that the store takes, reservations included")
        self.storage_limit_bytes = self._gauge("storage_limit_bytes", Across.ASKED, "Bytes that the store may take")
        self.storage_free_bytes = self._gauge("storage_free_bytes", Across.ASKED, "Free bytes of the store's file system")
        self.storage_min_free_bytes = self._gauge("storage_min_free_bytes", Across.ASKED, "Bytes that min_free keeps free")
        self.storage_blobs = self._gauge("storage_blobs", Across.ASKED, "Blobs that are held")
        self.registry_storage_bytes = self._gauge(
            "registry_storage_bytes", Across.ASKED, "Bytes of the blobs that a registry has brought into the store", "registry"
        )
        self.registry_storage_limit_bytes = self._gauge(
            "registry_storage_limit_bytes", Across.ASKED, "Bytes that the blobs of a registry may take", "registry"
        )
        self.storage_min_free_ok = self._gauge(
            "storage_min_free_ok",
            Across.LEAST,
            "0 while evicting could not bring back storage.min_free, for another program has filled the disk",
        )
        self.storage_min_free_ok.set(1)
        for reason in ("max_size", "min_free", "registry_max_size"):
            self.evicted_bytes.labels(reason)
            self.evicted_blobs.labels(reason)
        for result in ("ok", "wrong"):
            self.scrubbed_blobs.labels(result)

    def _declare_state(self) -> None:
        self.ready = self._gauge("ready", Across.ASKED, "1 while /readyz answers 200")
        self.config_reload_ok = self._gauge("config_reload_ok", Across.LEAST, "0 after a reload whose configuration was refused")
        self.config_reload_ok.set(1)
        self._gauge("build_info", Across.LARGEST, "Always 1", "version").labels(__version__).set(1)

    def _declare_cluster(self) -> None:
        self.cluster_nodes = self._gauge("cluster_nodes", Across.LARGEST, "Nodes of the cluster; 0 without one, or without Redis")
        self.cluster_alone = self._gauge("cluster_alone", Across.LARGEST, "1 while this node of a cluster cannot ask Redis")
        self.cluster_clock_offset = self._gauge(
            "cluster_clock_offset_seconds", Across.LARGEST, "What the clock of Redis is ahead of this host's"
        )
        self.cluster_calls = self._histogram("cluster_calls_seconds", "Calls to Redis")
        self.cluster_takeovers = self._counter(
            "cluster_takeovers", "Fetches that were taken over from another node, by what that node did", "reason"
        )
        self.cluster_poisoned = self._counter("cluster_poisoned", "Nodes that were left because they sent wrong bytes")
        self.cluster_refused = self._counter("cluster_refused", "Requests to nodes that were refused: they have another secret")
        self.cluster_upstream_shut = self._gauge(
            "cluster_upstream_shut",
            Across.LARGEST,
            "1 while nodes of the cluster say that an upstream fails",
            "registry",
            "upstream",
        )
        self.source_bytes = self._counter("source_bytes", "Bytes of blobs by where they came from", "source")
        self.objects_up = self._gauge("objects_up", Across.LEAST, "0 while the bucket of objects does not answer")
        self.objects_owed = self._gauge("objects_owed", Across.LARGEST, "Blobs and manifests that are not in the bucket yet")
        self.objects_bytes = self._gauge("objects_bytes", Across.LARGEST, "Bytes of all blobs and manifests in the bucket")
        self.objects_limit_bytes = self._gauge("objects_limit_bytes", Across.LARGEST, "Bytes that the bucket may take")
        self.objects_deleted = self._counter("objects_deleted", "Objects that were deleted to keep max_size, or after a purge")
        self.objects_deleted_bytes = self._counter("objects_deleted_bytes", "Bytes of such objects")
        self.objects_requests = self._counter("objects_requests", "Requests to the bucket of objects", "op", "status")
        self.objects_up.set(1)
        for op, status in (("get", "ok"), ("get", "absent"), ("get", "error"), ("put", "ok"), ("put", "error")):
            self.objects_requests.labels(op, status)
        for reason in ("absent", "busy", "connect", "cut", "timeout", "protocol", "refused", "waiting", "error"):
            self.cluster_takeovers.labels(reason)
        self.bytes_from_nodes, self.bytes_from_objects, self.bytes_from_upstreams = (
            self.source_bytes.labels(source) for source in ("peer", "objects", "upstream")
        )

    def _declare_sync(self) -> None:
        self.sync_runs = self._counter("sync_runs", "Orders to bring images in sync that were carried out", "result")
        self.sync_tags = self._counter("sync_tags", "Images that were looked at", "result")
        self.sync_last_success = self._gauge(
            "sync_last_success_timestamp_seconds", Across.LARGEST, "When a scheduled run last found everything in sync"
        )
        self.tags_held_back = self._gauge(
            "tags_held_back", Across.ASKED, "Tags that do not follow upstream because of a cool-down or a freeze", "registry"
        )
        self.notifications = self._counter("notifications", "Moves of tags that somebody was to be told of", "result")
        for result in ("completed", "limited", "failed", "timeout", "cancelled"):
            self.sync_runs.labels(result)
        for result in ("unchanged", "moved", "held_back", "untrusted", "gone", "failed", "skipped"):
            self.sync_tags.labels(result)
        for result in ("sent", "failed", "dropped"):
            self.notifications.labels(result)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"registry_mirror_{name}", help_text, labels, registry=self.registry)

    def _gauge(self, name: str, across: Across, help_text: str, *labels: str) -> Gauge:
        self.across[f"registry_mirror_{name}"] = across
        return Gauge(f"registry_mirror_{name}", help_text, labels, registry=self.registry)

    def _histogram(self, name: str, help_text: str, *labels: str) -> Histogram:
        return Histogram(f"registry_mirror_{name}", help_text, labels, registry=self.registry, buckets=BOUNDS_S)
