"""What every download works with, and the limits that it keeps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mirror.storage.blobs import BlobFiles
from mirror.storage.layout import Layout
from mirror.storage.threads import ThreadPools


@dataclass(frozen=True)
class Policy:
    """Limits of one download.

    Attributes:
        attempts: tries in a row without progress before giving up in mid-blob.
        first_byte: seconds until a reader's first byte has to be there.
        stall: seconds without progress after which another process is taken to hang. Less than `first_byte`, so that a client who
            waits for its first byte still gets it, past the store.
        flush: seconds after which another process that has verified the blob, and does not come to hold it, is taken to hang.
        fillers: most connections to upstream for one blob.
        look_ahead: a reader who is further ahead of what arrives than this many bytes gets a filler of its own.
    """

    attempts: int = 5
    first_byte: float = 22.0
    stall: float = 18.0
    flush: float = 600.0
    fetchers: int = 4
    look_ahead: int = 8 << 20


@dataclass(frozen=True)
class DownloadServices:
    """What every download works with.

    Attributes:
        resumed: told the reason whenever a download goes on after an interruption.
        make_room: tries to make so many bytes fit into the store, within a bounded time.
    """

    layout: Layout
    files: BlobFiles
    threads: ThreadPools
    policy: Policy
    resumed: Callable[[str], None]
    make_room: Callable[[int], Awaitable[None]]
