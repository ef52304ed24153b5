"""What every ingest works with, and the limits that it keeps."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from mirror.core.bounded_cache import BoundedCache
from mirror.core.pieces import Speed
from mirror.storage.blobs import BlobFiles
from mirror.storage.layout import Layout
from mirror.storage.space_quota import MakeRoom
from mirror.storage.threads import ThreadPools

_MAX_SPEEDS = 256


@dataclass(frozen=True)
class DownloadLimits:
    """Limits of one ingest.

    Attributes:
        attempts: tries in a row without progress before it fails, once bytes have arrived.
        first_byte_s: seconds until a reader's first byte must be available.
        stall_s: seconds without progress after which another process counts as hanging. Less than `first_byte_s`, so that a
            client who waits for its first byte still gets it, past the store.
        flush_s: the same once the other process has verified the blob and flushes it.
        fetchers: most connections to upstream for one blob.
        parallel_from_bytes: a blob of this size or more is fetched over several connections, if they bring more than one.
        look_ahead_bytes: a reader who is further ahead of a range fetcher than this gets one of its own.
    """

    attempts: int = 5
    first_byte_s: float = 22.0
    stall_s: float = 18.0
    flush_s: float = 600.0
    fetchers: int = 4
    parallel_from_bytes: int = 32 << 20
    look_ahead_bytes: int = 8 << 20


@dataclass(frozen=True)
class DownloadServices:
    """What every ingest works with.

    Attributes:
        resumed: counts an ingest that continues after an interruption, by its reason.
        make_room: makes room in the store.
        speeds: what several connections to an upstream bring, by `Source.origin`.
    """

    layout: Layout
    files: BlobFiles
    threads: ThreadPools
    limits: DownloadLimits
    resumed: Callable[[str], None]
    make_room: MakeRoom
    speeds: BoundedCache[Hashable, Speed] = field(default_factory=lambda: BoundedCache(_MAX_SPEEDS))
