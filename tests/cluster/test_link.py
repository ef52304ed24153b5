"""How long calls to a Redis that stops answering may take, in time that passes only while nothing happens."""

import asyncio

import pytest
from prometheus_client import CollectorRegistry, Histogram

from mirror.cluster.link import Link, LinkDown, Script
from mirror.cluster.redis_connections import RedisAddress
from tests.support.waiting import eventually

TIMEOUT_S = 40.0
ONE = Script("return 1")


class IdleTimeLoop(asyncio.SelectorEventLoop):
    """Skips the time in which it would only wait. No thread and no other process may have a part in the test."""

    def __init__(self):
        super().__init__()
        self.skipped = 0.0
        self._select, self._selector.select = self._selector.select, self._select_now

    def time(self):
        return super().time() + self.skipped

    def _select_now(self, timeout=None):
        events = self._select(0)
        if events or timeout == 0:
            return events
        if timeout is None:
            return self._select(None)
        self.skipped += timeout
        return []


class Redis:
    """Answers after `delay_s` seconds, or never. Accepts connections also then, as the system does for a stopped process."""

    def __init__(self):
        self.answers, self.delay_s = True, 0.0

    async def serve(self, reader, writer):
        try:
            while line := await reader.readline():
                for _ in range(int(line[1:])):
                    await reader.readexactly(int((await reader.readline())[1:]) + 2)
                await asyncio.sleep(self.delay_s)
                if self.answers:
                    writer.write(b":1\r\n")
        finally:
            writer.close()


@pytest.fixture
def given(tmp_path):
    """Runs a test with a Redis and a link that is up."""

    async def run(test):
        redis = Redis()
        server = await asyncio.start_unix_server(redis.serve, tmp_path / "redis.sock")
        seconds = Histogram("calls", "", registry=CollectorRegistry())
        link = Link(RedisAddress(f"unix://{tmp_path}/redis.sock", TIMEOUT_S), seconds, "probe")
        probing = asyncio.create_task(link.run())
        try:
            await eventually(lambda: link.is_up)
            await test(redis, link)
        finally:
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)
            await link.close()
            server.close()

    def start(test):
        with asyncio.Runner(loop_factory=IdleTimeLoop) as runner:
            runner.run(run(test))

    return start


def test_calls_in_a_row_end_soon_when_redis_stops(given):
    """A pull makes one call after the other; together they take less than three time limits, also with new connections."""

    async def test(redis, link):
        loop = asyncio.get_running_loop()
        redis.answers, began, count = False, loop.time(), 0
        while link.is_up:
            count += 1
            with pytest.raises(LinkDown):
                await link.call(ONE, [])
        assert count == 3
        assert loop.time() - began == pytest.approx(2.5 * TIMEOUT_S, abs=TIMEOUT_S / 10)

    given(test)


def test_redis_that_answers_late_is_not_given_up(given):
    """After two failures an answer in less than half of the time limit counts, and the next call has all of it."""

    async def test(redis, link):
        for _ in range(2):
            redis.answers = False
            for _ in range(2):
                with pytest.raises(LinkDown):
                    await link.call(ONE, [])
            redis.answers = True
            assert await link.call(ONE, []) == 1
            redis.delay_s = 0.9 * TIMEOUT_S
            assert await link.call(ONE, []) == 1
            redis.delay_s = 0.0
        assert link.is_up

    given(test)
