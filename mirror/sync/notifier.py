"""Sends moves of tags, and moves that are held back, to a webhook: one after the other, with retries, in a task of its own."""

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
from mirror.cache.tag_moves import HeldMove
from mirror.cache.tag_store import Move
from mirror.core.digest import Digest
from mirror.core.retry import backoff
from mirror.errors import MirrorError, NotificationRefused, StorageError, UpstreamError
from mirror.storage.blobs import BlobFiles
from mirror.storage.images import held_size, reach
from mirror.upstream.webhook import Webhook

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Limits of the deliveries; times in seconds.

    Attributes:
        attempts: of one notification.
        base: pause after the first failed attempt; it doubles each time, so that all pauses together take four minutes.
        longest: the longest pause.
        last: for the last attempts at all that wait, when the mirror stops.
        waiting: the maximum of waiting notifications; the oldest is dropped for a new one.
    """

    attempts: int = 6
    base: float = 8.0
    longest: float = 180.0
    last: float = 2.0
    waiting: int = 1000


@dataclass(slots=True)
class _Delivery:
    event: Move | HeldMove
    name: str
    # Made for the first attempt and kept: all attempts of one name send the same bytes.
    body: bytes | None = None


class Notifier:
    """Delivers notifications one after the other. Outlives reloads, with the notifications that wait.

    Args:
        count: called with the result of each: sent, failed or dropped.

    Attributes:
        policy: bounds and pauses of the attempts.
    """

    def __init__(
        self,
        files: BlobFiles,
        executor: Executor,
        count: Callable[[str], None],
        policy: RetryPolicy | None = None,
    ) -> None:
        self._files = files
        self._executor = executor
        self._count = count
        self.policy = policy or RetryPolicy()
        self._webhook: Webhook | None = None
        self._waiting: deque[_Delivery] = deque()
        self._current: _Delivery | None = None
        self._arrived = asyncio.Event()
        self._overflows = False

    def configure(self, webhook: Webhook | None) -> None:
        """Use a webhook from now on, also for what waits already; None for no notifications."""
        self._webhook = webhook

    def notify(self, event: Move | HeldMove) -> None:
        """Add a notification; it is delivered in the background."""
        if self._webhook is None:
            return
        if len(self._waiting) >= self.policy.waiting:
            self._waiting.popleft()
            self._count("dropped")
            if not self._overflows:
                log.warning("notifications_dropped", receiver=self._webhook.host, cause="too many wait: the oldest give way")
            self._overflows = True
        self._waiting.append(_Delivery(event, str(uuid.uuid4())))
        self._arrived.set()

    async def run(self) -> None:
        """Deliver notifications until cancelled."""
        while True:
            if not self._waiting:
                self._overflows = False
                self._arrived.clear()
                await self._arrived.wait()
            self._current = self._waiting.popleft()
            await self._deliver(self._current)
            self._current = None

    async def close(self) -> None:
        """Attempt each waiting notification once more, all within `RetryPolicy.last`. Call it after `run` was cancelled."""
        left = deque([self._current] if self._current is not None else []) + self._waiting
        webhook = self._webhook
        if not left or webhook is None:
            return
        failed = 0
        try:
            async with asyncio.timeout(self.policy.last):
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
        """Attempt until it is delivered or refused, or the attempts are used up."""
        attempt, failure = 0, "notifications were turned off"
        while (webhook := self._webhook) is not None:
            attempt += 1
            try:
                await self._attempt(webhook, delivery)
            except NotificationRefused as error:
                failure = str(error)
                break
            except UpstreamError as error:
                failure = str(error)
                if attempt >= self.policy.attempts:
                    break
                await asyncio.sleep(self._pause(attempt - 1))
            except Exception as error:
                # A defect in one must not block the others.
                log.error("notification_failed", exc_info=error)
                failure = type(error).__name__
                break
            else:
                return
        self._count("dropped" if webhook is None else "failed")
        image = f"{delivery.event.repository}:{delivery.event.tag}"
        log.warning("notification_failed", image=image, attempts=attempt, cause=failure)

    def _pause(self, attempt: int) -> float:
        return backoff(attempt, self.policy.base, self.policy.longest, random.random())  # noqa: S311 - no secret

    async def _attempt(self, webhook: Webhook, delivery: _Delivery) -> None:
        if delivery.body is None:
            delivery.body = await in_thread(self._executor, self._describe, delivery.event)
        await webhook.post(delivery.body, _name(delivery.event), delivery.name)
        self._count("sent")

    def _describe(self, event: Move | HeldMove) -> bytes:
        content = {
            "event": _name(event),
            "image": f"{event.repository}:{event.tag}",
            "registry": event.repository.registry,
            "repository": event.repository.path,
            "tag": str(event.tag),
            "old": None if event.old is None else {"digest": str(event.old), "size": self._size(event.old)},
            "new": {"digest": str(event.new), "size": self._size(event.new)},
            "time": _iso(event.when),
        }
        if isinstance(event, HeldMove):
            content |= {"reason": event.reason.value, "until": None if event.until is None else _iso(event.until)}
        return json.dumps(content).encode()

    def _size(self, digest: Digest) -> int | None:
        """Return the bytes that are cached of an image; None if its manifest is not cached, or the store cannot be read."""
        try:
            return held_size(self._files, reach(self._files, [digest])) if self._files.size(digest) is not None else None
        except (StorageError, OSError):
            return None


def _name(event: Move | HeldMove) -> str:
    return "tag_held_back" if isinstance(event, HeldMove) else "tag_moved"


def _iso(when: float) -> str:
    return datetime.fromtimestamp(when, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
