"""Prefetch: fetches the blobs of a manifest that a client has got and that was not held before.

Clients download a few blobs at a time; the mirror fetches more at once. Requests of clients have priority: prefetch uses a share
of the connections to upstreams, skips a blob that is being fetched, and stops if upstream fails or limits, or if the store has
no room. A failure of prefetch is only logged: a client's own request for the blob gets the answer.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass

import structlog

from mirror.aio import on_bytes
from mirror.cache.answers import ManifestAnswer
from mirror.cache.blobs import Blobs
from mirror.cache.context import Context
from mirror.core.bounded_cache import BoundedCache
from mirror.core.counts import Count
from mirror.core.digest import Digest
from mirror.core.manifest import Manifest, parse_manifest
from mirror.core.names import Repository
from mirror.core.prefetch_width import PrefetchWidth
from mirror.core.urgency import Urgency
from mirror.download.downloads import Downloads
from mirror.errors import MirrorError, StorageError
from mirror.storage.account import on_disk

log = structlog.get_logger(__name__)

# Blobs in the queue. Clients request the others themselves.
_MAX_WAITING = 1000
# Fetched manifests that no client has got yet.
_MAX_PENDING = 1000
# Interval of the look at what the connections bring, and whether other processes have released some of the share.
_POLL_INTERVAL_S = 0.1


def max_prefetches(connections: int) -> int:
    """The number of connections to upstreams that prefetch may use; at least one stays for clients."""
    return max(0, min(max(1, connections // 4), connections - 1))


@dataclass(slots=True, eq=False)
class _Image:
    """The blobs of one manifest.

    Attributes:
        repository: through which they are fetched, with its grants.
        context: of the client's request: upstream gets its id and its `Via`.
        waiting: blobs that are not started, in the order of the manifest.
        running: number of blobs that are being fetched.
    """

    repository: Repository
    context: contextvars.Context
    waiting: deque[Digest]
    running: int = 0


class Prefetch:
    """Fetches blobs ahead of the clients of one process.

    Args:
        max_running: concurrent blobs of all processes; 0 turns prefetch off.
        running: counts them.
    """

    def __init__(self, context: Context, blobs: Blobs, downloads: Downloads, max_running: int, running: Count) -> None:
        self._context = context
        self._blobs = blobs
        self._downloads = downloads
        self._max_running = max_running
        self._running = running
        self._next_poll: asyncio.TimerHandle | None = None
        self._pending: BoundedCache[tuple[Repository, Digest], None] = BoundedCache(_MAX_PENDING)
        self._images: list[_Image] = []
        # By registry.
        self._widths: defaultdict[str, PrefetchWidth] = defaultdict(PrefetchWidth)
        self._tasks: set[asyncio.Task[None]] = set()

    def on_fetched(self, repository: Repository, manifest: Manifest) -> None:
        """Note a manifest that upstream has given. Starts nothing: the client may have sent a HEAD, and may send no GET.

        An index has no blobs; its client requests the manifest of a platform next.
        """
        if not self._max_running or not manifest.blobs or self._context.is_lazy(repository):
            return
        self._pending.put((repository, manifest.digest), None)

    def is_pending(self, repository: Repository, digest: Digest) -> bool:
        """Whether `on_served` must see the first GET of a manifest."""
        return (repository, digest) in self._pending

    async def on_served(self, repository: Repository, answer: ManifestAnswer) -> None:
        """Start to fetch the blobs of a manifest that a client gets, if it is the first one since upstream gave it."""
        if answer.raw is None or not self.is_pending(repository, answer.digest):
            return
        self._pending.pop((repository, answer.digest))
        manifest = await on_bytes(len(answer.raw), None, parse_manifest, answer.raw, answer.media_type, answer.digest)
        if not self._max_running:
            return
        wanted = {blob.digest: blob.size for blob in manifest.blobs if not blob.is_foreign}
        if self._never_fits(repository, wanted.values()):
            self._count("dropped", len(wanted))
            return
        left = _MAX_WAITING - sum(len(image.waiting) for image in self._images)
        first = deque(list(wanted)[:left])
        self._count("dropped", len(wanted) - len(first))
        self._images.append(_Image(repository, contextvars.copy_context(), first))
        self._start_waiting()

    def stop_background(self) -> None:
        """Start no more blobs; running downloads continue."""
        self._max_running = 0
        self._pending.clear()
        for image in self._images:
            self._drop_waiting(image)

    async def close(self) -> None:
        """Stop, without a wait for running downloads, which continue."""
        self.stop_background()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _never_fits(self, repository: Repository, sizes: Iterable[int]) -> bool:
        """Whether the last blobs would evict the first ones, perhaps before the client requests those."""
        quota = self._context.store.quota
        limits = filter(None, (quota.max_size, quota.limit_of(repository.registry)))
        return sum(map(on_disk, sizes)) > min(limits, default=math.inf)

    def _start_waiting(self) -> None:
        """Start waiting blobs up to the limits, in the order of the images."""
        now = asyncio.get_running_loop().time()
        for image in self._images:
            most = self._widths[image.repository.registry].count(now)
            while image.waiting and image.running < most and self._running.enter(self._max_running):
                if not self._start(image, image.waiting.popleft()):
                    self._running.leave()
        self._images = [image for image in self._images if image.waiting]

        if self._images and self._next_poll is None:
            # No event reports how fast bytes arrive, nor that other processes release connections of the share.
            self._next_poll = asyncio.get_running_loop().call_later(_POLL_INTERVAL_S, self._poll)

    def _poll(self) -> None:
        self._next_poll = None
        now = asyncio.get_running_loop().time()
        for image in self._images:
            registry = self._context.registry(image.repository)
            self._widths[registry.name].note(now, registry.received, image.running)
        self._start_waiting()

    def _start(self, image: _Image, digest: Digest) -> bool:
        """Start a blob; False if it is being fetched already, or if upstream is not to be asked now."""
        # Blobs do not count as pulls, but an upstream without pulls left gets no prefetch either.
        if not self._context.registry(image.repository).allows_background(0):
            self._count("dropped")
        elif self._downloads.find(digest) is not None:
            self._count("needless")
        else:
            task = asyncio.get_running_loop().create_task(self._fetch(image, digest), context=image.context)
            image.running += 1
            self._context.in_use.acquire()
            self._tasks.add(task)
            task.add_done_callback(lambda ended: self._on_ended(image, ended))
            return True
        return False

    def _on_ended(self, image: _Image, task: asyncio.Task[None]) -> None:
        image.running -= 1
        self._running.leave()
        self._context.in_use.release()
        self._tasks.discard(task)
        if not image.running and not image.waiting:
            self._widths[image.repository.registry].ended()
        self._start_waiting()

    async def _fetch(self, image: _Image, digest: Digest) -> None:
        try:
            if await self._blobs.redirects.covers(image.repository, digest):
                self._count("needless")
                return
            fetched = await self._blobs.ensure_cached(image.repository, digest, Urgency.PREFETCH)
        except MirrorError as error:
            log.debug("prefetch_failed", repository=str(image.repository), digest=str(digest), cause=str(error))
            self._count("failed")
            if isinstance(error, StorageError):
                self._drop_waiting(image)
        else:
            self._count("fetched" if fetched else "needless")

    def _drop_waiting(self, image: _Image) -> None:
        self._count("dropped", len(image.waiting))
        image.waiting.clear()

    def _count(self, result: str, number: int = 1) -> None:
        self._context.metrics.prefetched_blobs.labels(result).inc(number)
