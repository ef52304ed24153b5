"""What the first page shows, arranged from the figures of the API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from mirror.core.units import format_bytes

MAX_DOWNLOADS: Final = 30
MAX_TROUBLES: Final = 10
MAX_CLIENTS: Final = 3
MAX_HELD_BACK: Final = 20
MAX_NODES: Final = 50
# Of a clock; requests between nodes are signed with a time.
_MAX_OFFSET_S: Final = 5.0


def downloads(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the downloads, those with the most readers first, each with the `share` of its bytes that has arrived."""
    found = [{**one, "share": min(1.0, one["bytes"] / one["size"]) if one["size"] else None} for one in entries]
    return sorted(found, key=lambda one: (-one["readers"], one["image"] or "", one["digest"]))


def problems(status: Mapping[str, Any]) -> list[str]:
    """Return what an operator has to look at, the most urgent first."""
    store, checks = status["store"], status["checks"]
    free = store["free"] or 0
    found = ["The mirror is stopping."] if status["draining"] else []
    if not status["store_writable"]:
        found.append("The store cannot be written: pulls bypass it.")
    found += (f"Account of {name}: {text}" for name, text in status["credentials"].items())
    found += (f"{one['name']} ({one['registry']}): {one['state']}" for one in status["upstreams"] if not one["up"])
    found += _cluster_problems(status["cluster"])
    bucket = status["objects"]
    if bucket is not None and not bucket["up"]:
        found.append(f"The bucket is not used, upstream is asked instead: {bucket['problem'] or 'it does not answer'}")
    found += (f"Check {name}: {check['text']}" for name, check in checks.items() if not check["ok"])
    if free < store["min_free"] and all(check["ok"] for check in checks.values()):
        kept = format_bytes(store["min_free"])
        found.append(f"{format_bytes(free)} are free on the disk, less than {kept}: pulls may bypass the store.")
    found += (f"{name}: {text}" for name, text in status["files"].items())
    return found


def _cluster_problems(cluster: Mapping[str, Any] | None) -> list[str]:
    if cluster is None:
        return []
    if cluster["redis"] != "up":
        return [f"The cluster cannot be asked, so this node fetches by itself: {cluster['cause']}"]
    nodes = cluster["nodes"]
    offsets = ((node["name"], node.get("clock", 0.0)) for node in nodes)
    return [
        f"The clock of node {name} is wrong by {abs(offset):.0f} s." for name, offset in offsets if abs(offset) > _MAX_OFFSET_S
    ]


def pulls_left(upstreams: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return one upstream of each registry that reports a pull limit."""
    found = {upstream["registry"]: upstream for upstream in upstreams if upstream["pulls_left"] is not None}
    return list(found.values())
