"""Asks one upstream one question: within the time that it has, and a second time beside the first if no answer comes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TypeAlias, TypeVar

from mirror.errors import UpstreamTimeout
from mirror.upstream.hedge import hedged
from mirror.upstream.upstream import Upstream, UpstreamRequest

T = TypeVar("T")

Work: TypeAlias = Callable[[Upstream, UpstreamRequest, AsyncExitStack], Awaitable[T]]
"""Sends a request and makes something of the answer; what it wants to keep open beyond that goes onto the stack."""


async def answer(upstream: Upstream, ask: UpstreamRequest, work: Work[T], seconds: float) -> tuple[T, AsyncExitStack]:
    """What an upstream answers, with what stays open until that is closed; whatever comes of it, its health learns of it.

    Args:
        seconds: how long it may take, once there is a connection to be had.

    Raises:
        UpstreamError, UpstreamRefusal: see those.
    """
    loop, health = asyncio.get_running_loop(), upstream.health
    with health.attempt(ask.kind, ask.method):
        async with AsyncExitStack() as slot:
            # Before the clock starts: that all connections are in use is no fault of the upstream.
            await slot.enter_async_context(upstream.slot(ask))
            deadline = loop.time() + seconds

            async def attempt(second: bool) -> tuple[T, AsyncExitStack]:
                async with AsyncExitStack() as stack:
                    if not second:
                        stack.push_async_exit(slot.pop_all())
                    own = replace(ask)
                    try:
                        async with asyncio.timeout_at(deadline):
                            if second:
                                await stack.enter_async_context(upstream.slot(ask))
                            found = await work(upstream, own, stack)
                    except TimeoutError as error:
                        late = UpstreamTimeout(f"{upstream.name} did not answer within {seconds:.0f} s")
                        late.elsewhere = own.elsewhere
                        raise late from error
                    return found, stack.pop_all()

            return await hedged(
                attempt,
                min(upstream.hedge_after, seconds / 4),
                lambda: health.pull_quota.allows_second(ask.kind, ask.method, health.clock()),
                lambda result: result[1].aclose(),
            )
