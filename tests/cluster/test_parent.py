"""When a node leaves one that it follows because that one is slow."""

import pytest

from mirror.cluster.parent import ParentStream, PeerSlow

KB, MB = 1000, 1_000_000


class Clock:
    """Seconds that the test moves on."""

    now = 0.0

    def __call__(self):
        return self.now

    def advance(self, seconds):
        self.now += seconds


class Stream:
    """Blocks of one size, each after one second."""

    start, size, is_partial = 0, 20 * MB, True

    def __init__(self, clock, size, count):
        self._clock, self._size, self._count = clock, size, count

    async def blocks(self):
        for _ in range(self._count):
            self._clock.advance(1)
            yield bytes(self._size)


@pytest.fixture
def clock():
    return Clock()


async def received(stream, after=lambda: None):
    """How many bytes come before the stream ends or is left."""
    count = 0
    try:
        async for block in stream.blocks():
            count += len(block)
            after()
    except PeerSlow:
        return count, "left"
    return count, "whole"


@pytest.mark.parametrize(
    ("size", "is_behind", "result"),
    [
        (900 * KB, True, (5 * 900 * KB, "left")),
        (900 * KB, False, (12 * 900 * KB, "whole")),
        (1100 * KB, True, (12 * 1100 * KB, "whole")),
    ],
)
async def test_less_than_a_megabyte_a_second_for_five_seconds(size, is_behind, result, clock):
    """Only if the node above has more: otherwise upstream is slow, and all would end at the owner."""

    async def ask(position):
        return is_behind

    assert await received(ParentStream(Stream(clock, size, 12), ask, clock)) == result


async def test_time_of_the_own_disk_does_not_count(clock):
    async def ask(position):
        return True

    stream = ParentStream(Stream(clock, 1100 * KB, 12), ask, clock)
    assert await received(stream, lambda: clock.advance(10)) == (12 * 1100 * KB, "whole")


async def test_end_of_the_blob_is_no_slowness(clock):
    async def ask(position):
        pytest.fail("nothing is left to ask for")

    stream = Stream(clock, 100 * KB, 5)
    stream.size = 500 * KB
    assert await received(ParentStream(stream, ask, clock)) == (500 * KB, "whole")
