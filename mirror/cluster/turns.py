"""Turns: one node asks upstream, and the others wait for what it learns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

CHECK_TIMEOUT_S = 2.0
"""How long a node waits for the check of a tag by another one; then it checks itself."""

_FIRST_PAUSE_S, _MAX_PAUSE_S = 0.005, 0.1


async def attempts(timeout_s: float) -> AsyncIterator[float]:
    """Yield at growing intervals, until `timeout_s` seconds have passed, the seconds that have."""
    loop = asyncio.get_running_loop()
    began, pause = loop.time(), _FIRST_PAUSE_S
    while (passed := loop.time() - began) < timeout_s:
        yield passed
        await asyncio.sleep(pause)
        pause = min(2 * pause, _MAX_PAUSE_S)
