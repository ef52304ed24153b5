"""A second try beside the first: one connection of which no answer comes costs a moment, not a time limit."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from mirror.aio import uninterrupted
from mirror.errors import UpstreamBusy, UpstreamError

T = TypeVar("T")


async def hedged(
    attempt: Callable[[bool], Coroutine[Any, Any, T]],
    after: float,
    allowed: Callable[[], bool],
    discard: Callable[[T], Coroutine[Any, Any, None]],
) -> T:
    """The result of the attempt that succeeds first; the other one is cancelled.

    A failure counts only when no other attempt is under way; what upstream refuses counts at once.

    Args:
        attempt: called with False, and with True for the second attempt; bounded in time.
        after: seconds without a result after which the second attempt begins.
        allowed: whether there may be a second attempt, asked when it is due.
        discard: gives back what a second result holds.

    Raises:
        UpstreamError: what the first of the attempts failed with, when all have failed.
        UpstreamRefusal: at once.
    """
    tasks = [asyncio.create_task(attempt(False))]
    winner: asyncio.Task[T] | None = None
    try:
        done, pending = await asyncio.wait(tasks, timeout=after)
        if not done and allowed():
            tasks.append(asyncio.create_task(attempt(True)))
            done, pending = set(), set(tasks)
        while True:
            for task in done:
                with contextlib.suppress(UpstreamError):
                    result = task.result()
                    winner = task
                    return result
            if not pending:
                failures = [error for task in tasks if (error := task.exception()) is not None]
                raise next((error for error in failures if not isinstance(error, UpstreamBusy)), failures[0])
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
    finally:
        try:
            await uninterrupted(_discard_all([task for task in tasks if task is not winner], discard))
        except asyncio.CancelledError:
            if winner is not None:
                await uninterrupted(discard(winner.result()))
            raise


async def _discard_all(tasks: list[asyncio.Task[T]], discard: Callable[[T], Coroutine[Any, Any, None]]) -> None:
    """Cancel attempts and release what they hold."""
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*(discard(result) for result in results if not isinstance(result, BaseException)))
