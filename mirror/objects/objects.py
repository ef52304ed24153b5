"""Object storage as one thing: what one process of a mirror needs of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mirror.aio import together
from mirror.config.sections import RegistryConfig
from mirror.core.scope import scope_of
from mirror.objects.bucket import Bucket
from mirror.objects.reader import ObjectReader
from mirror.objects.uploader import Uploader


@dataclass(frozen=True)
class Objects:
    """The bucket behind a store. It outlives reloads.

    Attributes:
        uploader: None if the bucket is only read.
    """

    bucket: Bucket
    reader: ObjectReader
    uploader: Uploader | None

    def configure(self, registries: Mapping[str, RegistryConfig]) -> None:
        """Use the registries of a configuration from now on."""
        scopes = {name: scope_of(name, entry.upstreams, None) for name, entry in registries.items() if entry.username is None}
        self.reader.scopes = scopes
        if self.uploader is not None:
            self.uploader.scopes = scopes

    @property
    def owed(self) -> int:
        """Uploads that are still to be made, as far as this process knows."""
        return 0 if self.uploader is None else self.uploader.count

    def describe(self) -> dict[str, object]:
        """Return the state for operators: `up` or `down`, and the uploads that are owed."""
        return {"objects": "up" if self.bucket.is_up else "down", "owed": self.owed}

    async def run(self) -> None:
        """Upload, and watch the bucket, until cancelled."""
        uploading = [] if self.uploader is None else [self.uploader.run()]
        await together([self.bucket.run(), self.reader.run(), *uploading])

    async def close(self) -> None:
        """End the running upload."""
        if self.uploader is not None:
            await self.uploader.close()
