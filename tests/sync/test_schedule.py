"""When the resync is due: by its interval, by what is configured, and whatever has become of the clock."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.sync.schedule import Schedule, after, round_to_run

HOUR = 3600.0


def last(**changes):
    usual = {"round": 1000.0, "began": 1000.0, "next": 1000.0 + HOUR, "unfinished": False, "fingerprint": "a"}
    return Schedule(**{**usual, **changes})


def due(schedule, interval=HOUR, now=2000.0, fingerprint="a", *, images=False):
    return round_to_run(schedule, fingerprint, interval, now, images=images)


@pytest.mark.parametrize(
    ("schedule", "ask", "began"),
    [
        pytest.param(None, {}, 2000.0, id="the first one"),
        pytest.param(None, {"interval": 0.0}, None, id="no interval"),
        pytest.param(None, {"interval": 0.0, "images": True}, 2000.0, id="no interval, but images"),
        pytest.param(last(), {}, None, id="too soon"),
        pytest.param(last(), {"now": 1000.0 + HOUR}, 1000.0 + HOUR, id="time for it"),
        pytest.param(last(), {"interval": 10.0}, 2000.0, id="the interval has become shorter"),
        pytest.param(last(), {"interval": 9 * HOUR, "now": 1001.0 + HOUR}, 1001.0 + HOUR, id="the interval has become longer"),
        pytest.param(last(), {"now": 500.0}, 500.0, id="the clock was set back"),
        pytest.param(last(), {"now": 500.0, "interval": 0.0}, None, id="the clock was set back, no interval"),
        pytest.param(last(next=1e12), {"now": 1000.0 + HOUR}, 1000.0 + HOUR, id="next is nonsense"),
        pytest.param(last(), {"fingerprint": "b"}, 2000.0, id="other images"),
        pytest.param(last(), {"fingerprint": "b", "interval": 0.0, "images": True}, 2000.0, id="other images, no interval"),
        pytest.param(last(), {"fingerprint": "b", "interval": 0.0}, None, id="there never were images"),
        pytest.param(last(unfinished=True), {}, None, id="a pause before the rest"),
        pytest.param(last(unfinished=True, next=1000.0), {}, 1000.0, id="killed in the middle"),
        pytest.param(last(unfinished=True), {"now": 1000.0 + HOUR}, 1000.0, id="the rest"),
        pytest.param(last(unfinished=True), {"fingerprint": "b"}, 1000.0, id="the rest, and other images"),
        pytest.param(last(unfinished=True, next=1000.0), {"interval": 0.0}, 1000.0, id="killed, no interval"),
        pytest.param(last(unfinished=True, round=9000.0), {"now": 1000.0 + HOUR}, 1000.0 + HOUR, id="a round in the future"),
    ],
)
def test_due(schedule, ask, began):
    assert due(schedule, **ask) == began


@given(st.floats(1, 1e6), st.floats(0, 1, exclude_max=True))
def test_never_later_than_the_interval(interval, chance):
    """Chance makes runs come sooner, within bounds, and never later: within one interval a move is found."""
    assert 0.79 * interval <= after(0.0, interval, chance) <= interval


def test_without_an_interval_there_is_a_pause():
    """What a run that has no interval has left is not tried again at once."""
    schedule = last(unfinished=True, next=after(1000.0, 0.0, 0.5))
    assert due(schedule, interval=0.0, now=1300.0) is None
    assert due(schedule, interval=0.0, now=2000.0) == 1000.0


def test_row():
    assert Schedule.read(last().row()) == last()


@pytest.mark.parametrize("row", [{}, {"round": 1}, {**last().row(), "next": "soon"}, {**last().row(), "began": None}])
def test_garbage(row):
    """What is no schedule is none, so that the next run is the first."""
    assert Schedule.read(row) is None


def test_no_numbers():
    """Times that are no numbers keep no run from coming."""
    nan = float("nan")
    assert due(last(began=nan, next=nan, round=nan)) == 2000.0
    assert due(last(next=nan), now=1000.0 + HOUR) is not None
