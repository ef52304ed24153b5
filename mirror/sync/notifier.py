"""Sends moves of tags, and moves that are held back, to a webhook: one after the other, with retries, in a task of its own.

Of the nodes of a cluster the first one that finds a move sends it, and another one if that node dies.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import structlog

from mirror.aio import in_thread, together
from mirror.cache.tag_moves import HeldMove
from mirror.cache.tag_store import Move
from mirror.core.notice import Notice
from mirror.core.retry import backoff
from mirror.errors import MirrorError, NotificationRefused, UpstreamError
from mirror.storage.blobs import BlobFiles
from mirror.sync.notice import describe, kind_of
from mirror.upstream.webhook import Webhook

if TYPE_CHECKING:
    from mirror.cluster.notices import SharedNotices

log = structlog.get_logger(__name__)

# How often the leases of notifications are renewed that wait, or are sent: three times within a lease.
_RENEW_INTERVAL_S = 20.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Limits of the deliveries; times in seconds.

    Attributes:
        attempts: of one notification.
        base: pause after the first failed attempt; it doubles each time, so that all pauses together take four minutes.
        longest: the longest pause.
        last: for the last attempts at all that wait, when the mirror stops.
        waiting: the maximum of waiting notifications; the oldest is dropped for a new one.
        takeover: how often notifications of nodes that have died are looked for.
    """

    attempts: int = 6
    base: float = 8.0
    longest: float = 180.0
    last: float = 2.0
    waiting: int = 1000
    takeover: float = 15.0


@dataclass(slots=True)
class _Delivery:
    """A notification that waits.

    Attributes:
        event: None if another node has found it.
        notice: made for the first attempt and kept, so that all attempts send the same bytes.
        receiver: of the webhook for which the nodes share it; None if they do not.
        is_ours: whether this node is to send it; ends with the question to the others.
    """

    image: str
    event: Move | HeldMove | None = None
    name: str = field(default_factory=lambda: str(uuid.uuid4()))
    notice: Notice | None = None
    receiver: str | None = None
    is_ours: asyncio.Task[bool] | None = None


class Notifier:
    """Delivers notifications one after the other. Outlives reloads, with the notifications that wait.

    Args:
        count: called with the result of each: sent, failed or dropped.

    Attributes:
        policy: bounds and pauses of the attempts.
        shared: the notifications of the cluster; None without one.
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
        self.shared: SharedNotices | None = None
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
        delivery = _Delivery(f"{event.repository}:{event.tag}", event)
        if self.shared is not None:
            # At once: what waits is not lost with this node.
            delivery.is_ours = asyncio.get_running_loop().create_task(self._offer(self.shared, self._webhook, delivery))
        self._add(self._webhook, delivery)

    @property
    def waiting(self) -> int:
        """The number of notifications that wait behind the one that is being delivered."""
        return len(self._waiting)

    async def run(self) -> None:
        """Deliver notifications until cancelled."""
        await together([self._run()] if self.shared is None else [self._run(), self._renew(self.shared)])

    async def close(self) -> None:
        """Attempt each waiting notification once more, all within `RetryPolicy.last`. Call it after `run` was cancelled.

        In a cluster the other nodes go on with those that have not arrived.
        """
        left = deque([self._current] if self._current is not None else []) + self._waiting
        webhook = self._webhook
        if not left or webhook is None:
            return
        lost = deque[_Delivery]()
        try:
            async with asyncio.timeout(self.policy.last):
                await self._asked(left)
                while left:
                    if _may_be_ours(left[0]):
                        try:
                            await self._attempt(webhook, left[0])
                        except MirrorError:
                            lost.append(left[0])
                    left.popleft()
        except TimeoutError:
            pass
        failed, late = await self._left_alone(lost), await self._left_alone(left)
        for result in ["failed"] * failed + ["dropped"] * late:
            self._count(result)
        if failed or late:
            log.warning("notifications_lost", receiver=webhook.host, count=failed + late, cause="the mirror stops")

    def _add(self, webhook: Webhook, delivery: _Delivery) -> None:
        if len(self._waiting) >= self.policy.waiting:
            self._waiting.popleft()
            self._count("dropped")
            if not self._overflows:
                log.warning("notifications_dropped", receiver=webhook.host, cause="too many wait: the oldest give way")
            self._overflows = True
        self._waiting.append(delivery)
        self._arrived.set()

    async def _run(self) -> None:
        while True:
            if not self._waiting:
                self._overflows = False
                self._arrived.clear()
                await self._next()
                continue
            self._current = self._waiting.popleft()
            if self._current.is_ours is None or await asyncio.shield(self._current.is_ours):
                await self._deliver(self._current)
            self._current = None

    # ---- over nodes

    async def _next(self) -> None:
        """Wait for a notification; now and then take over one of a node that has died."""
        if self.shared is None or not self.shared.takes_over:
            await self._arrived.wait()
        elif not await self._take_over(self.shared):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.policy.takeover):
                    await self._arrived.wait()

    async def _take_over(self, shared: SharedNotices) -> bool:
        webhook = self._webhook
        try:
            notice = None if webhook is None else await shared.take(webhook.receiver)
        except MirrorError:
            return False
        if webhook is None or notice is None:
            return False
        log.info("notification_taken_over", image=notice.image)
        self._add(webhook, _Delivery(notice.image, None, notice.name, notice, webhook.receiver))
        return True

    async def _offer(self, shared: SharedNotices, webhook: Webhook, delivery: _Delivery) -> bool:
        """Whether this node is to send it: no other one has, or Redis does not answer."""
        event = delivery.event
        assert event is not None
        try:
            notice = await self._described(delivery)
            is_ours = await shared.offer(webhook.receiver, str(event.new), event.when - event.confirmed, notice)
        except MirrorError:
            return True
        except Exception as error:
            log.error("notification_not_shared", exc_info=error)
            return True
        if is_ours:
            delivery.receiver = webhook.receiver
        return is_ours

    async def _renew(self, shared: SharedNotices) -> None:
        while True:
            await asyncio.sleep(_RENEW_INTERVAL_S)
            kept = [delivery for delivery in (self._current, *self._waiting) if delivery is not None]
            for receiver, names in _by_receiver(kept).items():
                with contextlib.suppress(MirrorError):
                    await shared.renew(receiver, names)

    async def _end(self, delivery: _Delivery) -> None:
        """Tell the other nodes that it has arrived, or is given up."""
        if self.shared is not None and delivery.receiver is not None:
            with contextlib.suppress(MirrorError):
                await self.shared.end(delivery.receiver, delivery.name)

    async def _asked(self, deliveries: Iterable[_Delivery]) -> None:
        """Wait until it is known whether notifications are this node's, half of `RetryPolicy.last` at most."""
        asked = [delivery.is_ours for delivery in deliveries if delivery.is_ours is not None]
        if asked:
            await asyncio.wait(asked, timeout=self.policy.last / 2)

    async def _left_alone(self, deliveries: Iterable[_Delivery]) -> int:
        """Leave notifications to the other nodes; returns the number of those that no node sends."""
        left = [delivery for delivery in deliveries if _may_be_ours(delivery)]
        alone = sum(delivery.receiver is None for delivery in left)
        for receiver, names in _by_receiver(left).items():
            try:
                assert self.shared is not None
                # One call for all: a mirror that stops has no time for a thousand.
                await self.shared.renew(receiver, names, 0.0)
            except MirrorError:
                alone += len(names)
        return alone

    # ---- delivering

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
        log.warning("notification_failed", image=delivery.image, attempts=attempt, cause=failure)
        await self._end(delivery)

    def _pause(self, attempt: int) -> float:
        return backoff(attempt, self.policy.base, self.policy.longest, random.random())  # noqa: S311 - no secret

    async def _attempt(self, webhook: Webhook, delivery: _Delivery) -> None:
        notice = await self._described(delivery)
        await webhook.post(notice.body, notice.kind, notice.name)
        self._count("sent")
        await self._end(delivery)

    async def _described(self, delivery: _Delivery) -> Notice:
        if delivery.notice is None:
            assert delivery.event is not None
            body = await in_thread(self._executor, describe, self._files, delivery.event)
            delivery.notice = Notice(delivery.name, kind_of(delivery.event), delivery.image, body)
        return delivery.notice


def _may_be_ours(delivery: _Delivery) -> bool:
    # One that arrives twice is better than one that is lost.
    return delivery.is_ours is None or not delivery.is_ours.done() or delivery.is_ours.result()


def _by_receiver(deliveries: Iterable[_Delivery]) -> dict[str, list[str]]:
    """The names of notifications that nodes share, by receiver."""
    names: dict[str, list[str]] = {}
    for delivery in deliveries:
        if delivery.receiver is not None:
            names.setdefault(delivery.receiver, []).append(delivery.name)
    return names
