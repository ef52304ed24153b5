"""Prefetch: what a client will ask for next, once it has been given a manifest that was not held.

Clients download a few blobs at a time. The mirror need not wait for them: it fetches more at once, and has them when they are
asked for. Clients come first all the same: prefetching has a share of the connections to upstreams only, joins nothing that is
under way already, and stops where upstream is in trouble or the store has no room. Whatever goes wrong is nobody's error: a
client that asks for the blob itself gets the true answer.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
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
from mirror.core.urgency import Urgency
from mirror.download.downloads import Downloads
from mirror.errors import MirrorError, StorageError
from mirror.storage.space_quota import on_disk

log = structlog.get_logger(__name__)

# Blobs of one image at a time. Where upstream limits each connection, twice as many as dockerd reads save it much of its waiting.
# Where it limits all together, more would delay the first layers, which clients unpack while the others come.
_PER_IMAGE = 6
# Blobs that wait for their turn. What is more is left to the clients.
_MAX_WAITING = 1000
# Manifests that no client has been given yet.
_MAX_UNTAKEN = 1000
# How often it is looked whether other processes have left something of the share. Seconds.
_POLL_INTERVAL_S = 0.1


def share(connections: int) -> int:
    """How many of so many connections to upstreams prefetching may use at a time; one is always left to clients."""
    return max(0, min(max(1, connections // 4), connections - 1))


@dataclass(slots=True, eq=False)
class _Image:
    """The blobs of one manifest.

    Attributes:
        repository: by way of which they are fetched, with its rights.
        context: of the request that began it: upstream is told that one's name, and which mirrors it has come through.
        waiting: not begun yet, in the manifest's order.
        under_way: how many are being fetched.
    """

    repository: Repository
    context: contextvars.Context
    waiting: deque[Digest]
    under_way: int = 0


class Prefetch:
    """Fetches blobs ahead of the clients of one process.

    Args:
        at_once: most blobs being fetched at a time by all processes; 0 turns it off.
        running: how many are.
    """

    def __init__(self, context: Context, blobs: Blobs, downloads: Downloads, at_once: int, running: Count) -> None:
        self._context = context
        self._blobs = blobs
        self._downloads = downloads
        self._at_once = at_once
        self._running = running
        self._next_poll: asyncio.TimerHandle | None = None
        self._untaken: BoundedCache[tuple[Repository, Digest], None] = BoundedCache(_MAX_UNTAKEN)
        self._images: list[_Image] = []
        self._under_way: set[asyncio.Task[None]] = set()

    def on_fetched(self, repository: Repository, manifest: Manifest) -> None:
        """Upstream has given a manifest. Nothing begins yet: it may have been for a HEAD, and some clients never send more.

        An index has no blobs: whoever gets it chooses a platform, and asks for that one's manifest.
        """
        if not self._at_once or not manifest.blobs:
            return
        self._untaken.put((repository, manifest.digest), None)

    def is_pending(self, repository: Repository, digest: Digest) -> bool:
        """Whether `taken` has still to be told when a client is given this manifest."""
        return (repository, digest) in self._untaken

    async def on_served(self, repository: Repository, answer: ManifestAnswer) -> None:
        """A client is given a manifest. If it is the first one since upstream gave it, begin to fetch the blobs, not waiting."""
        if answer.raw is None or not self.is_pending(repository, answer.digest):
            return
        self._untaken.pop((repository, answer.digest))
        manifest = await on_bytes(len(answer.raw), None, parse_manifest, answer.raw, answer.media_type, answer.digest)
        if not self._at_once:
            return
        wanted = {blob.digest: blob.size for blob in manifest.blobs if not blob.is_foreign}
        if self._never_fits(wanted.values()):
            self._count("dropped", len(wanted))
            return
        left = _MAX_WAITING - sum(len(image.waiting) for image in self._images)
        first = deque(list(wanted)[:left])
        self._count("dropped", len(wanted) - len(first))
        self._images.append(_Image(repository, contextvars.copy_context(), first))
        self._begin()

    def stop_background(self) -> None:
        """Begin nothing more; what has been begun goes on."""
        self._at_once = 0
        self._untaken.clear()
        for image in self._images:
            self._give_up(image)

    async def close(self) -> None:
        """Wait for nothing any more; the downloads that have been begun go on."""
        self.stop_background()
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _never_fits(self, sizes: Iterable[int]) -> bool:
        """Whether the first blobs would have to go for the last ones, perhaps before the client has come to them."""
        limit = self._context.store.files.quota.max_size
        return bool(limit) and sum(map(on_disk, sizes)) > limit

    def _begin(self) -> None:
        """Begin with as many of those that wait as may be under way, those of the first image first."""
        for image in self._images:
            while image.waiting and image.under_way < _PER_IMAGE and self._running.enter(self._at_once):
                if not self._take_turn(image, image.waiting.popleft()):
                    self._running.leave()
        self._images = [image for image in self._images if image.waiting]

        if self._images and not self._under_way and self._next_poll is None:
            # Other processes have all that there is: nothing here tells when that changes.
            self._next_poll = asyncio.get_running_loop().call_later(_POLL_INTERVAL_S, self._poll)

    def _poll(self) -> None:
        self._next_poll = None
        self._begin()

    def _take_turn(self, image: _Image, digest: Digest) -> bool:
        """Begin with a blob, unless that is needless or unwanted; whether it was begun."""
        # Blobs are no pulls, but where none is left upstream wants to be left alone.
        if not self._context.registry(image.repository).allows_background(0):
            self._count("dropped")
        elif self._downloads.find(digest) is not None:
            self._count("needless")
        else:
            task = asyncio.get_running_loop().create_task(self._bring(image, digest), context=image.context)
            image.under_way += 1
            self._context.in_use.acquire()
            self._under_way.add(task)
            task.add_done_callback(lambda ended: self._ended(image, ended))
            return True
        return False

    def _ended(self, image: _Image, task: asyncio.Task[None]) -> None:
        image.under_way -= 1
        self._running.leave()
        self._context.in_use.release()
        self._under_way.discard(task)
        self._begin()

    async def _bring(self, image: _Image, digest: Digest) -> None:
        try:
            fetched = await self._blobs.ensure_cached(image.repository, digest, Urgency.PREFETCH)
        except MirrorError as error:
            log.debug("prefetch_failed", repository=str(image.repository), digest=str(digest), cause=str(error))
            self._count("failed")
            if isinstance(error, StorageError):
                self._give_up(image)
        else:
            self._count("fetched" if fetched else "needless")

    def _give_up(self, image: _Image) -> None:
        self._count("dropped", len(image.waiting))
        image.waiting.clear()

    def _count(self, result: str, number: int = 1) -> None:
        self._context.metrics.prefetched_blobs.labels(result).inc(number)
