"""Waits grow, stay within their bounds, and follow what an upstream asks for within reason."""

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.core.retry import backoff, parse_retry_after

NOW = datetime(2015, 10, 21, 7, 28, 0, tzinfo=UTC)


def test_backoff_doubles_up_to_the_cap():
    """Without a reduction by jitter the waits double from the base until the cap."""
    assert [backoff(n, base=1, cap=10) for n in range(6)] == [1, 2, 4, 8, 10, 10]


def test_jitter_takes_the_upper_half():
    """The random number chooses between half the wait and all of it."""
    assert [backoff(2, base=1, cap=10, jitter=jitter) for jitter in (0, 0.5, 1)] == [2, 3, 4]


@given(st.integers(), st.floats(0.001, 60), st.floats(0.001, 3600), st.floats(0, 1))
def test_backoff_bounds(attempt, base, cap, jitter):
    """Whatever the attempt, the wait is more than nothing and at most the cap."""
    assert 0 < backoff(attempt, base, cap, jitter) <= cap


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("120", 120),
        (" 120 ", 120),
        ("Wed, 21 Oct 2015 07:29:00 GMT", 60),
        ("Wednesday, 21-Oct-15 07:29:00 GMT", 60),
        ("Wed Oct 21 07:29:00 2015", 60),
        ("Wed, 21 Oct 2015 07:29:00 -0000", 60),
        ("Wed, 21 Oct 2015 09:29:00 +0200", 60),
        ("Wed, 21 Oct 2015 07:00:00 GMT", 0),
        ("Wed, 21 Oct 2099 07:00:00 GMT", 21600),
        ("99999", 21600),
        ("9" * 5000, 21600),
        ("0" * 5000 + "7", 7),
        (None, None),
        ("", None),
        ("-1", None),
        ("1.5", None),
        ("soon", None),
        ("\u0661", None),
        ("Wed, 99 Oct 2015 07:29:00 GMT", None),
        ("Wed, 21 Oct 99999999999 07:29:00 GMT", None),
    ],
)
def test_retry_after(text, expected):
    """Seconds and all three forms of dates are understood, capped, never negative; the rest is nothing."""
    assert parse_retry_after(text, NOW) == expected


def test_cap_can_be_chosen():
    """A lower cap is kept to in both forms."""
    assert parse_retry_after("120", NOW, cap=30) == 30
    assert parse_retry_after("Wed, 21 Oct 2015 07:30:00 GMT", NOW, cap=30) == 30


@given(st.integers(0, 3600))
def test_date_round_trip(seconds):
    """A date that many seconds ahead means that many seconds."""
    assert parse_retry_after(format_datetime(NOW + timedelta(seconds=seconds), usegmt=True), NOW) == seconds


@given(st.text() | st.text(alphabet="Wed, 0123456789:Oct GMT+-"))
def test_arbitrary_text(text):
    """No header makes the parser fail or a wait leave its bounds."""
    seconds = parse_retry_after(text, NOW)
    assert seconds is None or 0 <= seconds <= 21600
