"""The queue for the connections for blobs, which all processes of a mirror share.

`core.urgency` decides which request gets the next one, and which gives one back. A process serves its own queue on each change,
and reads many times a second what the others publish about theirs.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextvars import ContextVar

from mirror import demand
from mirror.core.byte_rate import ByteRate
from mirror.core.counts import CountTable, Total
from mirror.core.urgency import Holder, Standing, Urgency, Waiter, first, precedes, to_yield
from mirror.errors import ConnectionWithdrawn, UpstreamBusy
from mirror.upstream.intake import BufferPool, Intake

_POLL_INTERVAL_S = 0.05

# Withdraws the connections of the current task; None where their use is bounded in time.
withdraw: ContextVar[Callable[[], None] | None] = ContextVar("withdraw", default=None)


@contextlib.asynccontextmanager
async def withdrawable() -> AsyncIterator[None]:
    """Allow connections to be withdrawn that this task, or one that it has started, acquires inside the context.

    Raises:
        ConnectionWithdrawn: one was withdrawn.
    """
    scope, loop = asyncio.timeout(None), asyncio.get_running_loop()
    active = True

    def end() -> None:
        nonlocal active
        if active:
            active = False
            scope.reschedule(loop.time())

    try:
        async with scope:
            withdraw.set(end)
            try:
                yield
            finally:
                active = False
                withdraw.set(None)
    except TimeoutError as error:
        if not scope.expired():
            raise
        raise ConnectionWithdrawn("the connection to upstream was taken back") from error


class Lease:
    """A connection, or a place in the queue."""

    def __init__(self, urgency: Callable[[], Urgency], since: int) -> None:
        self.urgency = urgency
        self.since = since
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.aged = self.yielding = self.prefetches = False
        # None if it cannot be withdrawn.
        self.withdraw = withdraw.get()

    def as_waiter(self) -> Waiter:
        """The lease as a waiter, for `core.urgency`."""
        return Waiter(self.urgency(), self.since)

    def as_holder(self) -> Holder:
        """The lease as a holder, for `core.urgency`."""
        return Holder(self.urgency(), self.since, self.aged, self.yielding)


class Connections:
    """The queue of one process, and what the others publish about theirs. Outlives reloads.

    Attributes:
        intake: the buffers and the rate of all connections of this process.
        in_use: counts the connections that are leased, in all processes.
        leases: those of this process.
    """

    def __init__(self, table: CountTable, clock: Callable[[], float] = time.monotonic) -> None:
        self.intake = Intake(BufferPool(), ByteRate(table))
        self._clock = clock
        self._limit, self._most_prefetching = 1, 0
        self._alone = table.slots == 1
        self._own = table.own
        self.in_use, self._prefetching, self._yielding, self._urgent, self._best, self._since, self._seen = (
            table.count(total)
            for total in (
                Total.UPSTREAM,
                Total.PREFETCHING,
                Total.YIELDING,
                Total.URGENT,
                Total.BEST,
                Total.SINCE,
                Total.SEEN,
            )
        )
        self._waiting: list[Lease] = []
        self.leases: list[Lease] = []
        self._next_poll: asyncio.TimerHandle | None = None

    def configure(self, limit: int, most_prefetching: int, max_rate: int = 0) -> None:
        """Change the limits: of connections, of those that prefetch, and of bytes per second (0 for none)."""
        self._limit, self._most_prefetching = limit, most_prefetching
        self.intake.rate.limit = max_rate

    @contextlib.asynccontextmanager
    async def lease(self, timeout: float) -> AsyncIterator[Lease]:
        """Wait for a connection with the urgency of `demand.urgency`.

        Raises:
            UpstreamBusy: none was free within `timeout` seconds.
        """
        lease = Lease(demand.urgency.get(), self._now())
        self._waiting.append(lease)
        try:
            self._serve()
            try:
                async with asyncio.timeout(timeout):
                    await lease.granted
            except TimeoutError as error:
                raise UpstreamBusy(f"all connections to upstreams were busy for {timeout:g} s", retry_after=5) from error
            yield lease
        finally:
            self._give_back(lease)
            self._serve()

    def _serve(self) -> None:
        """Grant free connections, withdraw those that more urgent requests need, and publish the state of the queue."""
        now = self._now()
        while (index := self._next(now)) is not None and self.in_use.enter(self._limit):
            lease = self._waiting.pop(index)
            if not lease.granted.done():
                self._grant(lease, now)
            else:
                self.in_use.leave()
        self._publish(now)
        self._take_back(now)
        if self._next_poll is None and (self._waiting or (self.leases and not self._alone)):
            self._next_poll = asyncio.get_running_loop().call_later(_POLL_INTERVAL_S, self._poll)

    def _poll(self) -> None:
        self._next_poll = None
        self._serve()

    def _next(self, now: int) -> int | None:
        """The index of the lease that gets the next free connection; None if another process has a more urgent one."""
        waiters = [lease.as_waiter() for lease in self._waiting]
        index = first(waiters, now, prefetch=self._prefetching.total < self._most_prefetching)
        return index if index is not None and precedes(waiters[index], self._others(), now) else None

    def _grant(self, lease: Lease, now: int) -> None:
        waiter = lease.as_waiter()
        lease.aged = waiter.rank(now)[0] < waiter.urgency
        lease.since = now
        lease.prefetches = waiter.urgency is Urgency.PREFETCH
        self._prefetching.own += lease.prefetches
        self.leases.append(lease)
        lease.granted.set_result(None)

    def _give_back(self, lease: Lease) -> None:
        if lease not in self.leases:
            with contextlib.suppress(ValueError):
                self._waiting.remove(lease)
            return
        self.leases.remove(lease)
        self.in_use.leave()
        self._prefetching.own -= lease.prefetches
        self._yielding.own -= lease.yielding

    def _take_back(self, now: int) -> None:
        live = [count for count, seen in zip(self._urgent, self._standings(), strict=True) if seen.is_live(now)]
        lacking = sum(live) - max(0, self._limit - self.in_use.total) - self._yielding.total
        if lacking <= 0:
            return
        able = [lease for lease in self.leases if lease.withdraw is not None]
        for index in to_yield([lease.as_holder() for lease in able], lacking, now):
            lease = able[index]
            assert lease.withdraw is not None
            lease.yielding = True
            self._yielding.own += 1
            lease.withdraw()

    # ---- other processes

    def _publish(self, now: int) -> None:
        waiters = [lease.as_waiter() for lease in self._waiting]
        self._urgent.own = sum(waiter.urgency is Urgency.CLIENT for waiter in waiters)
        index = first(waiters, now)
        self._best.own = 0 if index is None else waiters[index].rank(now)[0] + 1
        self._since.own = now if index is None else waiters[index].since
        self._seen.own = now

    def _standings(self) -> Sequence[Standing]:
        return [
            Standing(best - 1 if best else None, since, seen)
            for best, since, seen in zip(self._best, self._since, self._seen, strict=True)
        ]

    def _others(self) -> Sequence[Standing]:
        return [] if self._alone else [standing for slot, standing in enumerate(self._standings()) if slot != self._own]

    def _now(self) -> int:
        return int(self._clock() * 1000) % (1 << 32)
