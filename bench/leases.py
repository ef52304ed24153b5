"""Clients of the leases of a cluster at one Redis."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import AsyncIterator

import structlog
from prometheus_client import CollectorRegistry, Histogram

from bench.process import NotTakenError
from mirror.cluster.identity import Identity
from mirror.cluster.keys import Keys
from mirror.cluster.lease import Alone, Leases
from mirror.cluster.link import Link
from mirror.cluster.redis_connections import RedisAddress
from mirror.core.digest import Digest

FAN_OUT = 8
READY_SECONDS, TIMEOUT_SECONDS = 30.0, 5.0


def ask_times(port: int, clients: int, per_second: float, seconds: float) -> list[float]:
    """Seconds that each call for a lease takes; each client calls so often, at random times, and each blob is asked for by all.

    Raises:
        NotTakenError: Redis has not answered.
    """
    # Each client would say that it has joined.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    return asyncio.run(_ask_times(port, clients, per_second, seconds))


async def _ask_times(port: int, clients: int, per_second: float, seconds: float) -> list[float]:
    keys, chance = Keys("leases", str), random.Random(1)
    blobs = [Digest.of(f"{time.time_ns()} {number}".encode()) for number in range(int(per_second * seconds))]
    async with contextlib.AsyncExitStack() as stack:
        links = [await stack.enter_async_context(_link(port)) for _ in range(clients)]
        nodes = [Leases(link, keys, Identity(f"http://n{number}:1", ""), FAN_OUT) for number, link in enumerate(links)]

        async def client(leases: Leases) -> list[float]:
            found, began = [], time.monotonic()
            for number, digest in enumerate(blobs):
                await asyncio.sleep(max(0.0, began + (number + chance.random()) / per_second - time.monotonic()))
                asked = time.monotonic()
                if isinstance(await leases.ask(digest, "", "docker.io", may_own=True), Alone):
                    raise NotTakenError("Redis has not answered a call for a lease")
                found.append(time.monotonic() - asked)
            return found

        return [each for found in await asyncio.gather(*map(client, nodes)) for each in found]


@contextlib.asynccontextmanager
async def _link(port: int) -> AsyncIterator[Link]:
    address = RedisAddress(f"redis://127.0.0.1:{port}/0", TIMEOUT_SECONDS)
    link = Link(address, Histogram("calls", "", registry=CollectorRegistry()), "probe")
    running = asyncio.create_task(link.run())
    try:
        async with asyncio.timeout(READY_SECONDS):
            while not link.is_up:
                await asyncio.sleep(0.01)
        yield link
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await link.close()
