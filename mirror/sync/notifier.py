"""Tells a receiver which tags have moved: in order, again and again while it is out of order, and never in anybody's way."""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from mirror.aio import in_thread
from mirror.cache.tag_store import Move
from mirror.core.digest import Digest
from mirror.core.retry import backoff
from mirror.errors import MirrorError, NotificationRefused, StorageError, UpstreamError
from mirror.storage.blobs import BlobFiles
from mirror.storage.images import held_size, reach
from mirror.upstream.webhook import Webhook

log = structlog.get_logger(__name__)

_EVENT = "tag_moved"


@dataclass(frozen=True, slots=True)
class Patience:
    """How much is done for a notification; times in seconds.

    Attributes:
        attempts: before it is given up.
        base: wait after the first attempt that failed; it doubles each time, so that all waits together take four minutes.
        longest: between two attempts.
        last: for a last attempt at everything that waits, when the mirror stops.
        waiting: most notifications that wait; the oldest gives way to one more.
    """

    attempts: int = 6
    base: float = 8.0
    longest: float = 180.0
    last: float = 2.0
    waiting: int = 1000


@dataclass(slots=True)
class _Delivery:
    move: Move
    name: str
    # Made before the first attempt and kept: what is sent under one name is the same each time.
    body: bytes | None = None


class Notifier:
    """Delivers moves of tags one after the other. Outlives reloads, and so does what waits in it.

    Args:
        count: called with what became of each: sent, failed or dropped.
    """

    def __init__(
        self,
        files: BlobFiles,
        executor: Executor,
        count: Callable[[str], None] = lambda _: None,
        patience: Patience | None = None,
    ) -> None:
        self._files = files
        self._executor = executor
        self._count = count
        self._patience = patience or Patience()
        self._webhook: Webhook | None = None
        self._waiting: deque[_Delivery] = deque()
        self._current: _Delivery | None = None
        self._arrived = asyncio.Event()
        self._overflows = False

    def configure(self, webhook: Webhook | None) -> None:
        """Change who is told, also of what waits already; None for nobody."""
        self._webhook = webhook

    def moved(self, move: Move) -> None:
        """Have a move told some time; returns at once."""
        if self._webhook is None:
            return
        if len(self._waiting) >= self._patience.waiting:
            self._waiting.popleft()
            self._count("dropped")
            if not self._overflows:
                log.warning("notifications_dropped", receiver=self._webhook.host, cause="too many wait: the oldest give way")
            self._overflows = True
        self._waiting.append(_Delivery(move, str(uuid.uuid4())))
        self._arrived.set()

    async def run(self) -> None:
        """Deliver what comes, for ever."""
        while True:
            if not self._waiting:
                self._overflows = False
                self._arrived.clear()
                await self._arrived.wait()
            self._current = self._waiting.popleft()
            await self._deliver(self._current)
            self._current = None

    async def close(self) -> None:
        """Once `run` has been cancelled: one more attempt at each that waits, all of them within `Patience.last`."""
        left = deque([self._current] if self._current is not None else []) + self._waiting
        webhook = self._webhook
        if not left or webhook is None:
            return
        failed = 0
        try:
            async with asyncio.timeout(self._patience.last):
                while left:
                    try:
                        await self._attempt(webhook, left[0])
                    except MirrorError:
                        failed += 1
                        self._count("failed")
                    left.popleft()
        except TimeoutError:
            for _ in left:
                self._count("dropped")
        if failed or left:
            log.warning("notifications_lost", receiver=webhook.host, count=failed + len(left), cause="the mirror stops")

    async def _deliver(self, delivery: _Delivery) -> None:
        """Try until it has arrived, is refused, or has been tried often enough."""
        attempt, failure = 0, "nobody is told any more"
        while (webhook := self._webhook) is not None:
            attempt += 1
            try:
                await self._attempt(webhook, delivery)
            except NotificationRefused as error:
                failure = str(error)
                break
            except UpstreamError as error:
                failure = str(error)
                if attempt >= self._patience.attempts:
                    break
                await asyncio.sleep(self._pause(attempt - 1))
            except Exception as error:
                # A mistake in one must not keep back all others.
                log.error("notification_failed", exc_info=error)
                failure = type(error).__name__
                break
            else:
                return
        self._count("dropped" if webhook is None else "failed")
        move = delivery.move
        log.warning("notification_failed", image=f"{move.repository}:{move.tag}", attempts=attempt, cause=failure)

    def _pause(self, attempt: int) -> float:
        return backoff(attempt, self._patience.base, self._patience.longest, random.random())  # noqa: S311 - no secret

    async def _attempt(self, webhook: Webhook, delivery: _Delivery) -> None:
        if delivery.body is None:
            delivery.body = await in_thread(self._executor, self._describe, delivery.move)
        await webhook.post(delivery.body, _EVENT, delivery.name)
        self._count("sent")

    def _describe(self, move: Move) -> bytes:
        when = datetime.fromtimestamp(move.when, UTC).isoformat(timespec="milliseconds")
        told = {
            "event": _EVENT,
            "image": f"{move.repository}:{move.tag}",
            "registry": move.repository.registry,
            "repository": move.repository.path,
            "tag": str(move.tag),
            "old": {"digest": str(move.old), "size": self._size(move.old)},
            "new": {"digest": str(move.new), "size": self._size(move.new)},
            "time": when.replace("+00:00", "Z"),
        }
        return json.dumps(told).encode()

    def _size(self, digest: Digest) -> int | None:
        """Bytes of an image as far as it is held; None if not even its manifest is, or that cannot be found out."""
        try:
            return held_size(self._files, reach(self._files, [digest])) if self._files.size(digest) is not None else None
        except (StorageError, OSError):
            return None
