"""Bounded waits for something that the test cannot be told of."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable, Iterator
from typing import Any

# Seconds after which a test takes what it waits for as never to come; far more than a busy machine needs.
LIMIT = 45.0
# Seconds within which something comes that waits for no time limit of the mirror; a test makes those longer that are not.
SOON = 15.0
_MIN_PAUSE, _MAX_PAUSE = 0.002, 0.05


class NotInTime(AssertionError):
    """What the test waited for did not come about."""


async def eventually(
    look: Callable[[], Any], what: str = "", *, holds: Callable[[Any], object] = bool, limit: float = LIMIT
) -> Any:
    """Look until what is seen holds, and return it.

    Args:
        look: a function or a coroutine function without arguments.
        what: names the condition in the failure.
        holds: judges what `look` returned.
        limit: seconds to wait, what `look` takes included.

    Raises:
        NotInTime: it did not hold within the limit; says what was seen last.
    """
    seen: Any = None
    try:
        async with asyncio.timeout(limit):
            for pause in _pauses():
                found = look()
                seen = await found if inspect.isawaitable(found) else found
                if holds(seen):
                    return seen
                await asyncio.sleep(pause)
    except TimeoutError:
        raise NotInTime(f"not within {limit:g} s: {what or 'the condition'}; seen last: {seen!r:.500}") from None


def wait_until(condition: Callable[[], object], what: str, timeout: float = LIMIT) -> None:
    """`eventually` for tests without an event loop; raises NotInTime."""
    deadline = time.monotonic() + timeout
    for pause in _pauses():
        if condition():
            return
        if time.monotonic() > deadline:
            raise NotInTime(f"not within {timeout:g} s: {what}")
        time.sleep(pause)


def _pauses() -> Iterator[float]:
    """Pauses between looks: short for what comes at once, longer for what takes its time."""
    pause = _MIN_PAUSE
    while True:
        yield pause
        pause = min(1.3 * pause, _MAX_PAUSE)
