"""Probes an upstream that is out of order, so that no client has to wait to find out that it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from mirror.core.breaker import Admission
from mirror.errors import UpstreamError
from mirror.upstream.health import Health, TrackedBreaker

log = structlog.get_logger(__name__)


class Prober:
    """Probes one upstream while one of its breakers is open. After a probe that was answered the breaker admits one request.

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
        health, breaker = self._health, self._guard.breaker
        log.warning("upstream_down", upstream=self._guard.name, state=health.state)
        while not breaker.is_closed:
            if wait := breaker.wait(health.clock()):
                await asyncio.sleep(wait)
                # A request that was sent before may have closed the breaker meanwhile.
                continue
            try:
                await self._probe()
            except UpstreamError as error:
                health.probed(error)
                self._guard.probe_failed(error, health.clock())
            else:
                health.probed(None)
                breaker.released(Admission.TRIAL)
                log.info("upstream_answers_again", upstream=self._guard.name, state=health.state)
                return
