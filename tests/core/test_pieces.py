"""The planner of parallel fetching, played against simulated upstreams."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirror.core.pieces import Lane, Pieces, Speed, Verdict, Width, piece_length
from tests.support.names import MIB

TICK_S = 0.02
SIZE = 160 * MIB


class Far:
    """One blob that comes from a far upstream: each connection is limited, and the line that all of them share.

    Attributes:
        fronts: up to where a client can read, after each tick.
        requests: how many were sent.
    """

    def __init__(self, size, rate, round_trip=0.1, line=math.inf, width=None):
        self.size, self.rate, self.round_trip, self.line = size, rate, round_trip, line
        self.width = width or Width(4)
        self.arrived = [0] * -(-size // MIB)
        self.pieces = Pieces(self.hole)
        self.begins = []
        self.now, self.requests = 0.0, 0
        self.fronts = []
        first = Lane(0, size)
        self.pieces.add(first)
        self._ask(first)

    def length(self, chunk):
        return min(MIB, self.size - chunk * MIB)

    def hole(self, after):
        if after >= self.size:
            return None
        first = None
        for chunk in range(after // MIB, len(self.arrived)):
            if first is None and self.arrived[chunk] < self.length(chunk):
                first = chunk * MIB + self.arrived[chunk]
            elif first is not None and self.arrived[chunk]:
                return first, chunk * MIB
        return None if first is None else (first, self.size)

    def run(self):
        """Seconds until every byte has arrived."""
        while self.hole(0) is not None:
            self._tick()
            assert self.now < 3600
        return self.now

    def _ask(self, lane):
        lane.round_trip = self.round_trip
        self.begins.append((lane, self.now + self.round_trip))
        self.requests += 1

    def _tick(self):
        flowing = [lane for lane, begins in self.begins if begins <= self.now]
        received = sum(self.arrived)
        if flowing:
            self.width.note(self.now, received, self.size - received, self.pieces.lanes)
        while lane := self._next():
            self._ask(lane)
        self.now += TICK_S
        for lane in flowing:
            self._flow(lane, round(min(self.rate, self.line / len(flowing)) * TICK_S))
        self.fronts.append(self.size if (hole := self.hole(0)) is None else hole[0])

    def _next(self):
        if self.width.connections > 1:
            return self.pieces.take(self.width.connections, self.width.speed)
        hole = self.hole(0)
        if hole is None or self.pieces.lanes:
            return None
        lane = Lane(*hole)
        self.pieces.add(lane)
        return lane

    def _flow(self, lane, count):
        while count and lane.position < lane.stop:
            chunk, within = divmod(lane.position, MIB)
            assert self.arrived[chunk] == within, "two connections write into one chunk"
            step = min(count, self.length(chunk) - within, lane.stop - lane.position)
            self.arrived[chunk] += step
            lane.position += step
            count -= step
        if lane.position >= lane.stop:
            self.pieces.remove(lane)
            self.begins = [(other, begins) for other, begins in self.begins if other is not lane]


def alone(*args, **kwargs):
    return Far(*args, width=Width(1), **kwargs).run()


@pytest.mark.parametrize("round_trip", [0.005, 0.1, 0.25])
@pytest.mark.parametrize("rate", [4 * MIB, 8 * MIB, 16 * MIB])
def test_four_limited_connections_take_about_a_quarter_of_the_time(rate, round_trip):
    """Where each connection is limited, four of them need at most 0.35 of the time of one."""
    far = Far(40 * rate, rate, round_trip)
    assert far.run() <= 0.35 * alone(40 * rate, rate, round_trip)
    assert far.width.speed.verdict is Verdict.PARALLEL


@pytest.mark.parametrize("round_trip", [0.005, 0.1, 0.25])
def test_bytes_come_nearly_in_order(round_trip):
    """A client that reads from the start gets three times the speed of one connection all along."""
    rate = 4 * MIB
    far = Far(SIZE, rate, round_trip)
    took = far.run()
    window = round(8 * max(0.5, 9 * round_trip) / TICK_S)
    begun = round(2 / TICK_S)
    for tick in range(begun, round(took / TICK_S) - window):
        assert far.fronts[tick + window] - far.fronts[tick] >= 3 * rate * TICK_S * window


def test_a_full_line_gets_one_connection():
    """Where one connection fills the line further ones end after the trial, and cost hardly any time."""
    far = Far(SIZE, 20 * MIB, line=20 * MIB)
    assert far.run() <= 1.05 * alone(SIZE, 20 * MIB)
    assert far.width.speed.verdict is Verdict.SINGLE


def test_a_fast_connection_stays_alone():
    """Above the speed of a Gigabit link nothing is tried."""
    far = Far(SIZE, 300 * MIB, 0.005)
    far.run()
    assert far.requests == 1


def test_a_blob_that_is_nearly_there_stays_alone():
    """Connections that would come too late are not opened."""
    far = Far(34 * MIB, 50 * MIB, 0.1)
    far.run()
    assert far.requests == 1


def test_the_verdict_of_an_earlier_blob_holds_from_the_first_byte_on():
    """No blob measures what is known."""
    far = Far(100 * MIB, 8 * MIB, width=Width(4, Speed(Verdict.PARALLEL)))
    assert far.run() <= 0.33 * alone(100 * MIB, 8 * MIB)


def flowing(count):
    lanes = [Lane(0) for _ in range(count)]
    for lane in lanes:
        lane.position = 1
    return lanes


def tried():
    width = Width(4)
    for second in range(2):
        width.note(float(second), second * MIB, 399 * MIB, flowing(1))
    assert width.connections == 4
    return width


def test_a_refusal_ends_the_trial():
    """After a refused range one connection fetches the rest."""
    width = tried()
    width.refuse()
    assert width.connections == 1
    width.note(9.0, 9 * MIB, 390 * MIB, flowing(1))
    width.note(19.0, 19 * MIB, 380 * MIB, flowing(1))
    assert width.connections == 1


def test_a_trial_ends_although_connections_are_missing():
    """If upstream lets only two connections bring bytes, these two are judged."""
    width = tried()
    for second in range(1, 20):
        width.note(float(second), (2 * second - 1) * MIB, 300 * MIB, flowing(2))
    assert width.speed.verdict is Verdict.PARALLEL


@settings(deadline=None, max_examples=40)
@given(
    size=st.integers(1, 80 * MIB),
    rate=st.integers(MIB, 60 * MIB),
    round_trip=st.floats(0, 0.4),
    line=st.integers(MIB, 100 * MIB),
    most=st.integers(1, 16),
)
def test_every_byte_is_fetched_once(size, rate, round_trip, line, most):
    """Whatever the upstream, no byte comes twice, none is left out, and it takes hardly longer than with one connection."""
    far = Far(size, rate, round_trip, line, width=Width(most, Speed(Verdict.PARALLEL)))
    took = far.run()
    assert sum(far.arrived) == size
    assert far.begins == []
    assert took <= 1.1 * alone(size, min(rate, line), round_trip) + 3 * round_trip + 0.5


@given(st.floats(0, 1e10), st.floats(0, 10))
def test_pieces_are_whole_chunks(rate, round_trip):
    """A piece has from 1 to 32 MiB."""
    length = piece_length(rate, round_trip)
    assert MIB <= length <= 32 * MIB
    assert length % MIB == 0
