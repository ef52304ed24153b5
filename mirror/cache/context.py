"""What the parts of the use case share: the store, the index, and the registries that may be asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

import structlog

from mirror.aio import UseCount, in_thread
from mirror.cache.access_index import AccessIndex
from mirror.cache.tag_policy import TagPolicies
from mirror.cache.usage import Usage
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.errors import NotFound
from mirror.metrics import Metrics
from mirror.storage.blobs import BlobFiles
from mirror.storage.generation import Generation
from mirror.storage.index import Index
from mirror.storage.keyed_lock import KeyedLock
from mirror.storage.threads import ThreadPools
from mirror.storage.write_behind import WriteBehind
from mirror.upstream.registry import Registry

T = TypeVar("T")
P = ParamSpec("P")

log = structlog.get_logger(__name__)

# How long an answer waits for a note in the index. Usually that takes a millisecond.
_NOTE_TIMEOUT_S = 0.05


@dataclass(frozen=True)
class Context:
    """The surroundings of every pull.

    Attributes:
        registries: by name; no other registry is ever asked.
        make_room: tries to make so many bytes fit into the store, within a bounded time.
        small: manifests on their way to the disk.
        private: names of registries that are used with an account: there, only upstream's own word grants anything.
        access: which repository may be served what.
        turns: so that of several processes one fetches a manifest for all.
        in_use: counts who uses the registries; their connections stay open until nobody does.
        clock: seconds since the epoch.
    """

    registries: Mapping[str, Registry]
    private: frozenset[str]
    files: BlobFiles
    index: Index
    access: AccessIndex
    generation: Generation
    turns: KeyedLock
    threads: ThreadPools
    small: WriteBehind
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

    async def store(self, digest: Digest, data: bytes) -> None:
        """Store something small that was verified, making room for it if need be; raises StorageError.

        See `WriteBehind.put`: a slow disk keeps nobody waiting.
        """
        await self.small.put(digest, data, self.make_room)

    async def note(self, work: Callable[[], T], late: T) -> T:
        """Write a fact into the index; returns what `work` returned.

        If the disk is slow the answer goes on with `late`; then the next one may have to ask upstream for the same fact.
        The fact is written although whoever wanted to know has left.
        """
        written = asyncio.get_running_loop().run_in_executor(self.threads.note, work)
        done, _ = await asyncio.wait([written], timeout=_NOTE_TIMEOUT_S)
        if done:
            return written.result()
        written.add_done_callback(_log_failure)
        return late

    async def in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Read what an answer needs from the store."""
        return await in_thread(self.threads.serve, work, *args, **kwargs)


def _log_failure(written: asyncio.Future[T]) -> None:
    if not written.cancelled() and (error := written.exception()) is not None:
        log.error("note_not_written", exc_info=error)
