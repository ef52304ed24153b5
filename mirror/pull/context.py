"""What the parts of the use case share: the store, the index, and the registries that may be asked."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from mirror.aio import UseCount, in_thread
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.errors import NotFound, StorageError
from mirror.metrics import Metrics
from mirror.pull.settings import TagPolicies
from mirror.pull.usage import Usage
from mirror.storage.blobs import BlobFiles
from mirror.storage.generation import Generation
from mirror.storage.index import Index
from mirror.storage.turns import Turns
from mirror.upstream.registry import Registry

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class Context:
    """The surroundings of every pull.

    Attributes:
        registries: by name; no other registry is ever asked.
        make_room: tries to make so many bytes fit into the store, within a bounded time.
        private: names of registries that are used with credentials: there, each repository's rights are its own.
        turns: so that of several processes one fetches a manifest for all.
        in_use: counts who uses the registries; their connections stay open until nobody does.
        clock: seconds since the epoch.
    """

    registries: Mapping[str, Registry]
    private: frozenset[str]
    files: BlobFiles
    index: Index
    generation: Generation
    turns: Turns
    executor: Executor
    metrics: Metrics
    policies: TagPolicies
    usage: Usage
    make_room: Callable[[int], Awaitable[None]]
    in_use: UseCount
    clock: Callable[[], float] = time.time

    def registry(self, repository: Repository) -> Registry:
        """The registry to ask for a repository; raises NotFound if it is not configured."""
        registry = self.registries.get(repository.registry)
        if registry is None:
            raise NotFound(f"registry {repository.registry} is not mirrored here")
        return registry

    def scope(self, repository: Repository) -> str:
        """Within what a grant holds: one repository, or a whole registry that is used without credentials."""
        return str(repository) if repository.registry in self.private else repository.registry

    async def store(self, digest: Digest, data: bytes) -> None:
        """Store something small that was verified, making room for it if need be; raises StorageError."""
        try:
            await self.in_thread(self.files.put, digest, data)
        except StorageError as error:
            if error.reason != "full":
                raise
            await self.make_room(len(data))
            await self.in_thread(self.files.put, digest, data)

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run blocking work on the store."""
        return await in_thread(self.executor, work, *args, **kwargs)
