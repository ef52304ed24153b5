"""Counts over time: growth between rows, restarts, and sums over intervals."""

from hypothesis import given
from hypothesis import strategies as st

from mirror.core.traffic import KEPT_MINUTES, Totals, Traffic, growth, intervals

NOW = 30_000_000
MINUTE_NS = 60_000_000_000


def row(minute, pulls, run=NOW - 100, hits=0):
    return Totals(minute, run * MINUTE_NS, Traffic(pulls, hits))


def pulls(grown):
    return [(minute, traffic.pulls) for minute, traffic in grown]


def test_growth_of_one_run():
    """A run begins at zero; then each row counts what has come since the one before, in any order."""
    rows = [row(NOW, 30), row(NOW - 9, 10), row(NOW - 3, 30)]
    assert pulls(growth(rows, NOW)) == [(NOW - 9, 10), (NOW - 3, 20), (NOW, 0)]


def test_a_restart_begins_at_zero():
    """The counts of the next run are its own, also where they are larger than those before."""
    rows = [row(NOW - 9, 10), row(NOW - 8, 500, run=NOW - 8), row(NOW - 7, 501, run=NOW - 8)]
    assert pulls(growth(rows, NOW)) == [(NOW - 9, 10), (NOW - 8, 500), (NOW - 7, 1)]


def test_what_is_older_than_the_file_is_not_news():
    """A run that began more than a week ago has counted before its oldest row."""
    old = NOW - KEPT_MINUTES - 5
    rows = [row(NOW - 9, 1_000_000, run=old), row(NOW - 8, 1_000_001, run=old)]
    assert pulls(growth(rows, NOW)) == [(NOW - 9, 0), (NOW - 8, 1)]


def test_rows_of_the_future_are_ignored():
    """A clock that was set back."""
    assert pulls(growth([row(NOW + 1, 7), row(NOW, 3)], NOW)) == [(NOW, 3)]


def test_nothing_is_negative():
    """Whatever a worker wrote last, a chart shows no negative growth."""
    assert pulls(growth([row(NOW - 2, 5), row(NOW - 1, 3), row(NOW, 5)], NOW)) == [(NOW - 2, 5), (NOW - 1, 0), (NOW, 2)]


@given(st.lists(st.integers(0, 200)), st.integers(1, 30), st.integers(1, 40))
def test_intervals_lose_nothing(ages, width, count):
    """Each minute is in one interval, or before the first."""
    grown = [(NOW - age, Traffic(1)) for age in ages]
    sums = intervals(grown, NOW, width, count)
    first = (NOW // width - count + 1) * width
    assert len(sums) == count
    assert sum(traffic.pulls for traffic in sums) == sum(1 for minute, _ in grown if minute >= first)
    assert sums[-1].pulls == sum(1 for minute, _ in grown if minute // width == NOW // width)


def test_ratio_and_saving():
    """None without a pull; never negative."""
    assert (Traffic().hit_ratio, Traffic(4, 3).hit_ratio) == (None, 0.75)
    assert (Traffic(served=10, fetched=3).saved, Traffic(served=3, fetched=10).saved) == (7, 0)
