"""Probes an upstream that is out of order, so that no client has to wait to find out that it answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

import structlog

from mirror.errors import UpstreamError
from mirror.upstream.health import Health
from mirror.upstream.tracked_breaker import TrackedBreaker

log = structlog.get_logger(__name__)


class Prober:
    """Probes one upstream while one of its breakers is open. After a probe that was answered the breaker admits one request.

    A breaker that several mirrors share is probed by one of them at a time.

    Args:
        guard: the breaker.
        probe: raises UpstreamError if the upstream does not answer; bounded in time.
    """

    def __init__(self, health: Health, guard: TrackedBreaker, probe: Callable[[], Awaitable[None]]) -> None:
        self._health = health
        self._guard = guard
        self._probe = probe
        self._task: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Begin to probe, unless that is under way."""
        if not self._guard.breaker.is_closed:
            # Here, since the task begins later.
            self._guard.breaker.reserve()
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        """Stop probing."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        guard = self._guard
        if guard.shut is None:
            log.warning("upstream_down", upstream=guard.name, state=self._health.state)
        while self._is_needed:
            if guard.shut is None or self._health.sharing is None:
                await self._probe_alone()
            elif await self._health.sharing.turn(guard):
                await self._health.sharing.probed(guard, await self._is_answered())
        log.info("upstream_answers_again", upstream=guard.name, state=self._health.state)

    @property
    def _is_needed(self) -> bool:
        """Whether the breaker is open, and no request may be its trial."""
        guard = self._guard
        return guard.shut is not None or (not guard.breaker.is_closed and guard.breaker.is_reserved)

    async def _probe_alone(self) -> None:
        guard = self._guard
        if wait := guard.breaker.wait(self._health.clock()):
            guard.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await guard.changed.wait()
            # A request that was sent before may have closed the breaker meanwhile.
            return
        await self._is_answered()
        if self._health.sharing is not None:
            self._health.sharing.noted(guard)

    async def _is_answered(self) -> bool:
        """Probe, and note the outcome."""
        health, guard = self._health, self._guard
        try:
            await self._probe()
        except UpstreamError as error:
            health.probed(error)
            guard.probe_failed(error, health.clock())
            return False
        health.probed(None)
        guard.probe_answered(health.clock())
        return True
