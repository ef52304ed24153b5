"""What an answer of Redis that is lost costs; leases at a real Redis are in `tests/e2e/test_cluster_lease.py`."""

import asyncio
import types

from prometheus_client import CollectorRegistry, Histogram

from mirror.cluster import link as module
from mirror.cluster.identity import Identity
from mirror.cluster.keys import Keys
from mirror.cluster.lease import Alone, Leases, Own
from mirror.cluster.link import Link
from mirror.cluster.redis_connections import RedisAddress
from mirror.core.digest import Digest
from tests.support.waiting import eventually

DIGEST = Digest.of(b"x")
OWNED = b"*2\r\n$5\r\nowned\r\n$9\r\nown|t|me|\r\n"
FULL = b"-OOM command not allowed when used memory > 'maxmemory'\r\n"
# A call is made once more over another connection when the first one is closed.
LOST = [None, None]


class Redis:
    """Answers scripts but that of the probe in turn; for None it closes the connection."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.calls = 0

    async def serve(self, reader, writer):
        try:
            while words := await self._command(reader):
                answer = b"+OK\r\n"
                if words[0] == b"EVALSHA" and b"probe" not in words:
                    self.calls += 1
                    answer = self.answers.pop(0)
                if answer is None:
                    return
                writer.write(answer)
                await writer.drain()
        finally:
            writer.close()

    @staticmethod
    async def _command(reader):
        head = await reader.readline()
        words = []
        for _ in range(int(head[1:] or 0)):
            length = int((await reader.readline())[1:])
            words.append((await reader.readexactly(length + 2))[:-2])
        return words


async def asked(redis, then=lambda: None):
    """What a node is told that asks for a lease, and whether the link is up after that."""
    server = await asyncio.start_server(redis.serve, "127.0.0.1", 0)
    link = Link(
        RedisAddress(f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0", 20.0),
        Histogram("calls", "", registry=CollectorRegistry()),
        "probe",
    )
    running = asyncio.create_task(link.run())
    try:
        await eventually(lambda: link.is_up)
        then()
        leases = Leases(link, Keys("x", str), Identity("http://me", ""), 8)
        return await leases.ask(DIGEST, "", "scope", may_own=True), link.is_up
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await link.close()
        server.close()


async def test_lost_answers_cost_no_blob():
    """While the link is up, a node asks again instead of fetching the blob by itself."""
    answer, _ = await asked(Redis(*LOST, *LOST, OWNED))
    assert answer == Own("own|t|me|", is_new=False)


async def test_link_ends_with_the_third_lost_answer():
    redis = Redis(*LOST, *LOST, *LOST, OWNED)
    answer, is_up = await asked(redis)
    assert (answer, redis.calls) == (Alone(), len(LOST) * 3)
    assert not is_up


async def test_refusal_is_final():
    redis = Redis(FULL, OWNED)
    assert await asked(redis) == (Alone(), True)
    assert redis.calls == 1


async def test_all_calls_together_take_the_time_of_one(monkeypatch):
    """A call that has used it up is the last one: pulls wait for it."""
    redis, times = Redis(*LOST, OWNED), [0.0, 0.0, 0.0, 60.0]
    clock = types.SimpleNamespace(monotonic=lambda: times.pop(0) if len(times) > 1 else times[0])
    answer, is_up = await asked(redis, lambda: monkeypatch.setattr(module, "time", clock))
    assert (answer, is_up, redis.calls) == (Alone(), True, len(LOST))
