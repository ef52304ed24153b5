"""What the first page shows, arranged from the figures of the API."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from mirror.core.units import format_bytes

MAX_DOWNLOADS: Final = 30
MAX_TROUBLES: Final = 10


@dataclass(frozen=True, slots=True)
class Download:
    """A blob that is being fetched, by however many processes.

    Attributes:
        share: of the bytes that have arrived; None if the size is not known.
        rate: bytes a second from upstream; None if it is not known yet.
    """

    digest: str
    image: str
    received: int
    size: int | None
    share: float | None
    rate: int | None
    readers: int


def downloads(entries: Iterable[Mapping[str, Any]]) -> list[Download]:
    """Return the downloads of all processes, those with the most readers first.

    A process that follows the download of another one reports it, too, with its own readers.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for entry in entries:
        found.setdefault(entry["digest"], []).append(entry)
    merged = [_merged(digest, same) for digest, same in found.items()]
    return sorted(merged, key=lambda download: (-download.readers, download.image, download.digest))


def _merged(digest: str, entries: list[Mapping[str, Any]]) -> Download:
    received, size = max(entry["bytes"] for entry in entries), max(entry["size"] or 0 for entry in entries) or None
    return Download(
        digest,
        next((entry["image"] for entry in entries if entry["image"]), ""),
        received,
        size,
        min(1.0, received / size) if size else None,
        max((entry["bytes_per_second"] for entry in entries if entry["bytes_per_second"] is not None), default=None),
        sum(entry["readers"] for entry in entries),
    )


def problems(status: Mapping[str, Any]) -> list[str]:
    """Return what an operator has to look at, the most urgent first."""
    store, checks = status["store"], status["checks"]
    free = store["free"] or 0
    found = ["The mirror is stopping."] if status["draining"] else []
    if not status["store_writable"]:
        found.append("The store cannot be written: pulls bypass it.")
    found += (f"Account of {name}: {text}" for name, text in status["credentials"].items())
    found += (f"{one['name']} ({one['registry']}): {one['state']}" for one in status["upstreams"] if not one["up"])
    found += (f"Check {name}: {check['text']}" for name, check in checks.items() if not check["ok"])
    if free < store["min_free"] and all(check["ok"] for check in checks.values()):
        kept = format_bytes(store["min_free"])
        found.append(f"{format_bytes(free)} are free on the disk, less than {kept}: pulls may bypass the store.")
    found += (f"{name}: {text}" for name, text in status["files"].items())
    return found


def pulls_left(upstreams: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return one upstream of each registry that reports a pull limit."""
    found = {upstream["registry"]: upstream for upstream in upstreams if upstream["pulls_left"] is not None}
    return list(found.values())
