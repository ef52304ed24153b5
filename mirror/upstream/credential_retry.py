"""Tries a login again that was refused, so that it takes no client to find out that the credentials are taken again.

A mirror that is not ready because of them may have no clients.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from mirror.errors import MirrorError
from mirror.upstream.login import FIRST, LONGEST, Login

# How often the password's file is looked at meanwhile, in seconds.
_LOOK = 2.0
_MAX_DOUBLINGS = 10


class CredentialRetry:
    """Watches one login from its refusal until it is taken, or there are other credentials."""

    def __init__(self, login: Login) -> None:
        self._login = login
        self._task: asyncio.Task[None] | None = None

    def wake(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """Begin, unless it is being done.

        Args:
            attempt: does again what the login was refused for; bounded in time.
        """
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(attempt))

    async def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self, attempt: Callable[[], Awaitable[None]]) -> None:
        tries = 0
        while await self._lasts(min(LONGEST, FIRST * 2.0 ** min(tries, _MAX_DOUBLINGS))):
            tries += 1
            # What came of it the login knows.
            with contextlib.suppress(MirrorError):
                await attempt()

    async def _lasts(self, pause: float) -> bool:
        """Wait until it may be tried again; False as soon as that is no longer needed."""
        loop = asyncio.get_running_loop()
        due = loop.time() + max(pause, self._login.wait)
        while self._login.problem is not None and loop.time() < due:
            await asyncio.sleep(min(_LOOK, max(0.0, due - loop.time())))
            await self._login.look()
        return self._login.problem is not None
