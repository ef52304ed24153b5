"""Object storage as one thing: what one process of a mirror needs of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from mirror.aio import together
from mirror.config.sections import RegistryConfig
from mirror.core.scope import scope_of
from mirror.objects.inventory import BucketInventory
from mirror.objects.owed import OwedUploads
from mirror.objects.reader import ObjectReader
from mirror.objects.sweeper import Sweeper
from mirror.objects.uploader import Uploader
from mirror.objects.use_report import UseReport
from mirror.storage.coordination import LeaderLock


@dataclass(frozen=True)
class BucketWriter:
    """What writes to a bucket. One process of a store does.

    Attributes:
        lock: the path of the lock by which that process is elected.
        beside: runs in that process, too.
    """

    uploader: Uploader
    sweeper: Sweeper
    owed: OwedUploads
    lock: str
    beside: Callable[[], Coroutine[Any, Any, None]] | None = None

    async def run(self) -> None:
        """Upload and sweep until cancelled, once this process is elected."""
        with contextlib.closing(LeaderLock(self.lock)) as leader:
            await leader.elected()
            beside = [] if self.beside is None else [self.beside()]
            await together([self.uploader.run(), self.sweeper.run(), *beside])


@dataclass(frozen=True)
class Objects:
    """The bucket behind a store. It outlives reloads.

    Attributes:
        writer: None if the bucket is only read.
    """

    reader: ObjectReader
    uses: UseReport
    inventory: BucketInventory
    writer: BucketWriter | None

    def configure(self, registries: Mapping[str, RegistryConfig]) -> None:
        """Use the registries of a configuration from now on."""
        scopes = {name: scope_of(name, entry.upstreams, None) for name, entry in registries.items() if entry.username is None}
        self.reader.scopes = scopes
        if self.writer is not None:
            self.writer.uploader.scopes = scopes

    @property
    def owed(self) -> int:
        """Uploads that are still to be made, as far as this process knows."""
        return 0 if self.writer is None else self.writer.uploader.count

    @property
    def size(self) -> int:
        """Bytes of all blobs and manifests in the bucket; 0 in processes that do not know."""
        return 0 if self.writer is None else self.writer.sweeper.size or 0

    def describe(self) -> dict[str, object]:
        """Return the state for operators: `up` or `down`, and the uploads that all processes owe. Blocks."""
        owed = 0 if self.writer is None else self.writer.owed.count()
        return {"objects": "up" if self.reader.is_up else "down", "owed": owed}

    async def run(self) -> None:
        """Upload, sweep, and watch the bucket, until cancelled."""
        writing = [] if self.writer is None else [self.writer.run()]
        await together([self.reader.bucket.run(), self.reader.run(), self.uses.run(), *writing])

    async def close(self) -> None:
        """End the running upload, and report the last uses."""
        with contextlib.suppress(TimeoutError):
            await self.uses.report()
        if self.writer is not None:
            await self.writer.uploader.close()
