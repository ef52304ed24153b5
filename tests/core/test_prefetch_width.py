"""How many blobs of an image are fetched ahead at once."""

import pytest

from mirror.core.prefetch_width import WIDTHS, PrefetchWidth

NARROW, WIDER, WIDEST = WIDTHS

MB = 1e6


class Line:
    """A line over which a width is measured: each connection brings so much, and all of them at most so much.

    Attributes:
        counts: how many there should have been at each look.
    """

    def __init__(self, each, total, width=None):
        self.width = width or PrefetchWidth()
        self.counts = []
        self.now, self.received = 100.0, 0.0
        self._each, self._total = each, total

    def run(self, seconds, blobs=99):
        """Fetch as many at once as there should be; returns how many those are afterwards."""
        for _ in range(round(seconds * 10)):
            running = min(self.width.count(self.now), blobs)
            self.width.note(self.now, int(self.received), running)
            self.counts.append(running)
            self.now += 0.1
            self.received += 0.1 * min(running * self._each, self._total)
        return self.width.count(self.now)


def test_line_that_is_full():
    """Where twice as many bring nothing, there are as many as clients fetch by themselves, but for one short trial."""
    line = Line(12 * MB, 12 * MB)
    assert line.run(5) == NARROW
    assert line.counts.count(WIDER) <= 10
    assert WIDEST not in line.counts
    assert line.counts[:3] == [NARROW] * 3


@pytest.mark.parametrize(("connections", "width"), [(3, NARROW), (5, WIDER), (6, WIDER), (10, WIDEST), (1000, WIDEST)])
def test_each_connection_is_limited(connections, width):
    """As long as twice as many bring more, they stay."""
    assert Line(4 * MB, connections * 4 * MB).run(5) == width


def test_image_that_ends_in_a_trial():
    """The next one goes on with what has brought more so far."""
    line = Line(4 * MB, 1000 * MB)
    while line.run(0.1) != WIDEST:
        pass
    line.width.ended()
    assert line.width.count(line.now) == WIDEST
    assert Line(4 * MB, 6 * 4 * MB, line.width).run(5) == WIDER


def test_next_image_needs_no_trial():
    """What one image has found out holds for the next ones, and is found out anew later."""
    width = PrefetchWidth()
    assert Line(12 * MB, 12 * MB, width).run(5) == NARROW
    width.ended()
    line = Line(12 * MB, 12 * MB, width)
    line.run(5)
    assert set(line.counts) == {NARROW}
    line.now += 600
    line.run(5)
    assert WIDER in line.counts


def test_responses_that_take_long_to_begin():
    """While no byte comes more are begun, and nothing is decided by that."""
    line = Line(0, 0)
    assert line.run(2) == WIDER
    line.width.ended()
    assert line.width.count(line.now) == NARROW


def test_too_few_blobs():
    """Fewer blobs than are to be measured decide nothing."""
    line = Line(12 * MB, 12 * MB)
    assert line.run(5, blobs=2) == NARROW
    assert line.run(5) == NARROW
    assert WIDER in line.counts
