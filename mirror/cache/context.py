"""What the parts of the use case share: the store, the registries, the policies."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import structlog

from mirror.aio import UseCount, in_thread
from mirror.cache.access_index import AccessIndex
from mirror.cache.last_answers import LastAnswers
from mirror.cache.tag_policy import TagPolicies
from mirror.cache.usage import Usage
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.errors import NotFound
from mirror.metrics import Metrics
from mirror.storage.space_quota import MakeRoom
from mirror.storage.store import Store
from mirror.upstream.registry import Registry

if TYPE_CHECKING:
    # Imported only by a mirror in a cluster, or with a bucket.
    from mirror.cluster.node import ClusterNode
    from mirror.objects.reader import ObjectReader

T = TypeVar("T")
P = ParamSpec("P")

log = structlog.get_logger(__name__)

# The longest wait of an answer for a row in the index. It usually takes a millisecond.
_NOTE_TIMEOUT_S = 0.05


@dataclass(frozen=True)
class CacheServices:
    """What outlives a reload.

    Attributes:
        access: which repository may be served which digest.
        make_room: makes room in the store.
        make_registry_room: makes room in a registry with a limit, for bytes that are reserved in the store.
        cluster: this node's part in a cluster; None if none is configured.
        objects: reads the bucket behind the store; None if none is configured.
    """

    store: Store
    access: AccessIndex
    usage: Usage
    metrics: Metrics
    make_room: MakeRoom
    make_registry_room: Callable[[int, str], Awaitable[None]]
    last_answers: LastAnswers = field(default_factory=LastAnswers)
    cluster: ClusterNode | None = None
    objects: ObjectReader | None = None


class Context:
    """What every part of the use case works with.

    Args:
        registries: by name; no other registry is ever asked.
        in_use: counts the users of the registries; their connections stay open until there is none.
        lazy: the registries of whose blobs only the requested ranges are fetched.

    Attributes:
        clock: returns seconds since the epoch.
        make_registry_room: tries to make room in a registry with a limit, for bytes that are reserved in the store.
    """

    def __init__(
        self,
        services: CacheServices,
        registries: Mapping[str, Registry],
        policies: TagPolicies,
        in_use: UseCount,
        lazy: frozenset[str] = frozenset(),
    ) -> None:
        self.store = services.store
        self.access = services.access
        self.usage = services.usage
        self.metrics = services.metrics
        self.last_answers = services.last_answers
        self.cluster = services.cluster
        self.objects = services.objects
        self.registries = registries
        self.policies = policies
        self.in_use = in_use
        self._lazy = lazy
        self.clock: Callable[[], float] = time.time
        self._make_room = services.make_room
        self.make_registry_room = services.make_registry_room

    def registry(self, repository: Repository) -> Registry:
        """The registry of a repository; raises NotFound if it is not configured."""
        registry = self.registries.get(repository.registry)
        if registry is None:
            raise NotFound(f"registry {repository.registry} is not mirrored here")
        return registry

    def is_lazy(self, repository: Repository) -> bool:
        """Whether only the requested ranges of the blobs of a repository are fetched."""
        return repository.registry in self._lazy

    def is_private(self, repository: Repository) -> bool:
        """Whether a repository's registry is used with an account: there, only upstream's own answers grant a digest."""
        registry = self.registries.get(repository.registry)
        return registry is not None and registry.private

    async def put(self, repository: Repository, digest: Digest, data: bytes) -> None:
        """Store small, verified content that came through a repository; makes room if there is none. See `WriteBehind.put`.

        Raises:
            StorageError: the store cannot take it.
        """
        await self.store.small.put(digest, data, repository.registry, self._make_room)

    async def make_room(self, size: int, owner: str | None) -> None:
        """Make room in the store for `size` bytes that count for a registry, if that is possible within some seconds."""
        await self._make_room(size, owner)

    async def note(self, work: Callable[[], T], late: T) -> T:
        """Write rows into the index in a thread, and return the result of `work`.

        If the disk is slow, return `late` after `_NOTE_TIMEOUT_S`; the next request may then ask upstream again.
        A cancelled caller does not cancel the write.
        """
        written = asyncio.get_running_loop().run_in_executor(self.store.threads.note, work)
        done, _ = await asyncio.wait([written], timeout=_NOTE_TIMEOUT_S)
        if done:
            return written.result()
        written.add_done_callback(_log_failure)
        return late

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run work that reads the store for an answer in a thread."""
        return await in_thread(self.store.threads.serve, work, *args, **kwargs)


def _log_failure(written: asyncio.Future[T]) -> None:
    if not written.cancelled() and (error := written.exception()) is not None:
        log.error("note_not_written", exc_info=error)
