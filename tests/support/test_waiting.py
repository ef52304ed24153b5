"""The waits that tests share."""

import asyncio

import pytest

from tests.support.waiting import NotInTime, eventually, wait_until


async def test_first_look_that_holds_is_returned():
    """`eventually` returns what it saw, whether the function is a coroutine function or not."""
    seen = iter(range(10))

    async def look():
        return next(seen)

    assert await eventually(look, holds=lambda number: number == 3) == 3
    assert await eventually(lambda: next(seen)) == 4


async def test_what_does_not_come_is_named():
    """After the limit the failure names the condition and what was seen last; a look that hangs is bounded, too."""
    with pytest.raises(NotInTime, match=r"not within 0\.01 s: the end; seen last: \[\]"):
        await eventually(list, "the end", limit=0.01)
    with pytest.raises(NotInTime, match="seen last: None"):
        await eventually(asyncio.Event().wait, limit=0.01)


def test_wait_without_a_loop():
    """`wait_until` returns as soon as the condition holds, and names it if it never does."""
    seen = iter([0, 0, 1])
    wait_until(lambda: next(seen), "the third look")
    assert next(seen, None) is None
    with pytest.raises(NotInTime, match="the moon"):
        wait_until(lambda: False, "the moon", 0.01)
