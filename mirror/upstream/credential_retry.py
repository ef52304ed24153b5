"""Retries credentials that were refused in the background: a mirror that is not ready because of them may have no clients."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from mirror import spans
from mirror.errors import MirrorError
from mirror.upstream.login import FIRST_PAUSE_S, MAX_PAUSE_S, Login

# Between two reads of the password file.
_POLL_INTERVAL_S = 2.0
_MAX_DOUBLINGS = 10


class CredentialRetry:
    """Retries one login until it is accepted, or there are other credentials."""

    def __init__(self, login: Login) -> None:
        self._login = login
        self._task: asyncio.Task[None] | None = None

    def wake(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """Begin to retry, unless that is under way.

        Args:
            attempt: sends a request that requires the login; bounded in time.
        """
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(attempt))

    async def close(self) -> None:
        """Stop retrying."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, attempt: Callable[[], Awaitable[None]]) -> None:
        spans.leave()
        tries = 0
        while await self._lasts(min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(tries, _MAX_DOUBLINGS))):
            tries += 1
            # The login notes the outcome.
            with contextlib.suppress(MirrorError):
                await attempt()

    async def _lasts(self, pause: float) -> bool:
        """Wait for a pause; False as soon as no retry is needed."""
        loop = asyncio.get_running_loop()
        due = loop.time() + max(pause, self._login.wait)
        while self._login.problem is not None and loop.time() < due:
            await asyncio.sleep(min(_POLL_INTERVAL_S, max(0.0, due - loop.time())))
            await self._login.refresh()
        return self._login.problem is not None
