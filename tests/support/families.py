"""The metrics that operators may rely on: by family, its type and its labels."""

from prometheus_client.parser import text_string_to_metric_families

_UPSTREAM = ("registry", "upstream")

FAMILIES = {
    "requests": ("counter", ("registry", "kind", "outcome", "status")),
    "request_duration_seconds": ("histogram", ("kind", "outcome")),
    "time_to_first_byte_seconds": ("histogram", ("kind", "outcome")),
    "served_bytes": ("counter", ("registry", "outcome")),
    "upstream_requests": ("counter", (*_UPSTREAM, "kind", "status")),
    "upstream_bytes": ("counter", _UPSTREAM),
    "upstream_duration_seconds": ("histogram", (*_UPSTREAM, "kind")),
    "upstream_up": ("gauge", _UPSTREAM),
    "upstream_ratelimit_limit": ("gauge", ("registry",)),
    "upstream_ratelimit_remaining": ("gauge", ("registry",)),
    "upstream_credentials_ok": ("gauge", ("registry",)),
    "renewed_files_ok": ("gauge", ()),
    "check_ok": ("gauge", ("check",)),
    "refused": ("counter", ("reason",)),
    "downloads_in_progress": ("gauge", ()),
    "download_readers": ("gauge", ()),
    "downloads": ("counter", ("result",)),
    "download_resumes": ("counter", ("reason",)),
    "prefetched_blobs": ("counter", ("result",)),
    "stale_served": ("counter", ("registry", "reason")),
    "storage_bytes": ("gauge", ()),
    "storage_limit_bytes": ("gauge", ()),
    "storage_free_bytes": ("gauge", ()),
    "storage_min_free_bytes": ("gauge", ()),
    "storage_blobs": ("gauge", ()),
    "storage_min_free_ok": ("gauge", ()),
    "evicted_bytes": ("counter", ("reason",)),
    "evicted_blobs": ("counter", ("reason",)),
    "purged_bytes": ("counter", ()),
    "scrubbed_blobs": ("counter", ("result",)),
    "notifications": ("counter", ("result",)),
    "registry_storage_bytes": ("gauge", ("registry",)),
    "registry_storage_limit_bytes": ("gauge", ("registry",)),
    "sync_runs": ("counter", ("result",)),
    "sync_tags": ("counter", ("result",)),
    "sync_last_success_timestamp_seconds": ("gauge", ()),
    "trust_verdicts": ("counter", ("registry", "result")),
    "tags_held_back": ("gauge", ("registry",)),
    "cluster_nodes": ("gauge", ()),
    "cluster_alone": ("gauge", ()),
    "cluster_clock_offset_seconds": ("gauge", ()),
    "cluster_calls_seconds": ("histogram", ()),
    "cluster_takeovers": ("counter", ("reason",)),
    "cluster_poisoned": ("counter", ()),
    "cluster_refused": ("counter", ()),
    "cluster_upstream_shut": ("gauge", ("registry", "upstream")),
    "objects_up": ("gauge", ()),
    "objects_owed": ("gauge", ()),
    "objects_bytes": ("gauge", ()),
    "objects_limit_bytes": ("gauge", ()),
    "objects_deleted": ("counter", ()),
    "objects_deleted_bytes": ("counter", ()),
    "objects_requests": ("counter", ("op", "status")),
    "source_bytes": ("counter", ("source",)),
    "ready": ("gauge", ()),
    "config_reload_ok": ("gauge", ()),
    "build_info": ("gauge", ("version",)),
}
# Those whose labels are known in a cluster only.
OF_CLUSTERS = {"cluster_upstream_shut"}
PROCESS = {
    "process_virtual_memory_bytes": "gauge",
    "process_resident_memory_bytes": "gauge",
    "process_start_time_seconds": "gauge",
    "process_cpu_seconds": "counter",
    "process_open_fds": "gauge",
    "process_max_fds": "gauge",
}


def check(text):
    """Assert that a scrape has these families, with these labels, and no others."""
    found = {family.name: family for family in text_string_to_metric_families(text)}
    expected = {f"registry_mirror_{name}": kind for name, (kind, _) in FAMILIES.items()} | PROCESS
    assert {name: family.type for name, family in found.items()} == expected
    for name, (_, labels) in FAMILIES.items():
        samples = found[f"registry_mirror_{name}"].samples
        assert samples or name in OF_CLUSTERS, name
        assert {frozenset(sample.labels) - {"le"} for sample in samples} <= {frozenset(labels)}, name
