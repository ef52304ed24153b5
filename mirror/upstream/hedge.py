"""A second attempt beside the first: a connection on which no answer comes costs a moment, not a time limit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from mirror.aio import uninterrupted
from mirror.errors import UpstreamBusy
from mirror.upstream.attempt import Attempt

T = TypeVar("T")


async def hedged(
    send: Callable[[bool], Coroutine[Any, Any, Attempt[T]]], after: float, allowed: Callable[[], bool]
) -> Attempt[T]:
    """The attempt that is answered first; the other one is cancelled and closed.

    An error counts only when no other attempt is under way. If both fail, the first one's error counts, unless it found no free
    connection.

    Args:
        send: called with False, and with True for the second attempt; bounded in time.
        after: seconds without an outcome after which the second attempt begins.
        allowed: whether there may be a second attempt; called when it is due.
    """
    tasks = [asyncio.create_task(send(False))]
    chosen: asyncio.Task[Attempt[T]] | None = None
    try:
        done, _ = await asyncio.wait(tasks, timeout=after)
        if not done and allowed():
            tasks.append(asyncio.create_task(send(True)))
        chosen = await _first_answered(tasks)
        return chosen.result()
    finally:
        try:
            others = [task for task in tasks if task is not chosen]
            if others:
                await uninterrupted(_discard_all(others))
        except asyncio.CancelledError:
            if chosen is not None:
                await uninterrupted(chosen.result().close())
            raise


async def _first_answered(tasks: list[asyncio.Task[Attempt[T]]]) -> asyncio.Task[Attempt[T]]:
    """The attempt that is answered first; if all fail, the first one that found a free connection."""
    pending = set(tasks)
    while pending:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        answered = next((task for task in done if task.result().is_answer), None)
        if answered is not None:
            return answered
    return next((task for task in tasks if not isinstance(task.result().error, UpstreamBusy)), tasks[0])


async def _discard_all(tasks: list[asyncio.Task[Attempt[T]]]) -> None:
    """Cancel attempts and release what they hold."""
    for task in tasks:
        task.cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*(outcome.close() for outcome in outcomes if isinstance(outcome, Attempt)))
