"""The running downloads, as the API lists them: each blob once, whichever processes fetch and read it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final
from weakref import WeakKeyDictionary

from mirror.admin.download_rates import DownloadRates
from mirror.cache.blob_source import UpstreamSource
from mirror.download.downloads import Downloads
from mirror.download.ingest import Ingest
from mirror.storage.index import Index

# Addresses that are listed of one download; `readers` counts all.
_MAX_CLIENTS: Final = 100


class DownloadFigures:
    """The downloads of this process."""

    def __init__(self, downloads: Downloads, index: Index) -> None:
        self._downloads = downloads
        self._index = index
        self._rates = DownloadRates()
        # A tag is found through the index; the one of a download stays the same.
        self._images: WeakKeyDictionary[Ingest, str] = WeakKeyDictionary()

    def sample(self, now: float) -> None:
        """Follow how fast downloads proceed. Only one thread at a time may call it, every second or so."""
        self._rates.sample(self._downloads, now)

    def own(self) -> list[dict[str, Any]]:
        """Return the downloads of this process."""
        return [
            {
                "digest": str(download.digest),
                "image": self._image_of(download),
                "state": download.state.name,
                "bytes": download.received,
                "size": download.size,
                "bytes_per_second": self._rates.rate(download),
                "readers": download.readers,
                "clients": download.addresses[:_MAX_CLIENTS],
            }
            for download in self._downloads
        ]

    def _image_of(self, download: Ingest) -> str | None:
        """Return the image through which a blob is fetched: a tag, or else the repository; None if that is not known."""
        image = self._images.get(download)
        if image is not None or not isinstance(download.source, UpstreamSource):
            return image
        repository = download.source.repository
        tag = self._index.tag_that_needs(repository, "blob", download.digest)
        if tag is None:
            return str(repository)
        image = self._images[download] = f"{repository}:{tag}"
        return image


def merged(entries: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return each blob once: one process fetches it, others follow, and each has readers of its own."""
    found: dict[str, dict[str, Any]] = {}
    for entry in entries:
        other = found.get(entry["digest"])
        found[entry["digest"]] = dict(entry) if other is None else _both(other, entry)
    return list(found.values())


def _both(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return one entry for two processes: what the one says that knows more, and the readers of both."""
    best, rest = (one, other) if one["bytes"] >= other["bytes"] else (other, one)
    rates = [entry["bytes_per_second"] for entry in (best, rest) if entry["bytes_per_second"] is not None]
    return {
        **best,
        "image": best["image"] or rest["image"],
        "size": best["size"] if best["size"] is not None else rest["size"],
        "bytes_per_second": max(rates, default=None),
        "readers": one["readers"] + other["readers"],
        "clients": list(dict.fromkeys((*one["clients"], *other["clients"])))[:_MAX_CLIENTS],
    }
