"""What is remembered of failures."""

import asyncio
import gc
import weakref

import pytest

from mirror.errors import UpstreamDisconnected
from mirror.upstream.flights import GuardedSingleFlight


class Body(bytearray):
    """Bytes whose end can be seen."""


async def test_failure_is_remembered_without_what_failed():
    """A failure that is remembered keeps nothing of the work that met it: neither what it had read nor what caused it."""
    flights, seen = GuardedSingleFlight(), []

    async def cut():
        body = Body(b"half of a manifest")
        seen.append(weakref.ref(body))
        try:
            raise ConnectionError("reset")
        except ConnectionError as error:
            raise UpstreamDisconnected("cut") from error

    for _ in range(2):
        with pytest.raises(UpstreamDisconnected, match=r"^cut$"):
            await flights.run("key", cut)
    with pytest.raises(UpstreamDisconnected, match=r"again and again.*: cut"):
        await flights.run("key", cut)
    # The last flight lands in the next turn of the event loop.
    await asyncio.sleep(0)
    gc.collect()
    assert len(seen) == 2
    assert not any(body() for body in seen)
