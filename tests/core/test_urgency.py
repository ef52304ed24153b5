"""Who is next in the queue for connections, and who yields."""

import pytest

from mirror.core.urgency import Holder, Standing, Urgency, Waiter, elapsed, first, precedes, to_yield

CLIENT, PREFETCH, ABANDONED, SYNC = Urgency
NOW = 1_000_000


def waiter(urgency, waited=0):
    return Waiter(urgency, NOW - waited)


@pytest.mark.parametrize(
    ("waiting", "expected"),
    [
        ([], None),
        ([(SYNC, 10), (ABANDONED, 10), (PREFETCH, 10), (CLIENT, 0)], 3),
        ([(SYNC, 10), (ABANDONED, 10), (PREFETCH, 0)], 2),
        ([(SYNC, 10), (ABANDONED, 0)], 1),
        ([(CLIENT, 10), (CLIENT, 20), (CLIENT, 15)], 1),
        ([(CLIENT, 100), (PREFETCH, 5_000)], 1),
        ([(CLIENT, 100), (PREFETCH, 4_999)], 0),
        ([(CLIENT, 100), (SYNC, 15_000)], 1),
        ([(CLIENT, 100), (SYNC, 14_999)], 0),
    ],
)
def test_order(waiting, expected):
    """The more urgent one comes first, then who waited longer; each five seconds of waiting count as a step."""
    assert first([waiter(*one) for one in waiting], NOW) == expected


def test_no_more_prefetching():
    """With its share used up prefetching waits, however long, and does not stand in the way of others."""
    waiting = [waiter(PREFETCH, 60_000), waiter(SYNC, 1)]
    assert first(waiting, NOW, prefetch=False) == 1
    assert first(waiting[:1], NOW, prefetch=False) is None


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (Standing(None, NOW, NOW), True),
        (Standing(0, NOW - 50, NOW), True),
        (Standing(0, NOW - 150, NOW), False),
        (Standing(1, NOW - 9_000, NOW), True),
        (Standing(0, NOW - 9_000, NOW - 1_000), True),
        (Standing(0, NOW - 9_000, NOW - 999), False),
    ],
)
def test_other_processes(other, expected):
    """A waiter of another process comes first by the same rule, unless that process does not look at its queue any more."""
    assert precedes(waiter(CLIENT, 100), [Standing(None, 0, 0), other], NOW) is expected


def test_yielding():
    """What no client reads yields, the least urgent and youngest first, and not what has waited long or yields already."""
    holders = [
        Holder(CLIENT, NOW - 1),
        Holder(ABANDONED, NOW - 100),
        Holder(ABANDONED, NOW - 50),
        Holder(SYNC, NOW - 500, aged=True),
        Holder(SYNC, NOW - 5_000, aged=True),
        Holder(PREFETCH, NOW - 1),
        Holder(SYNC, NOW, yielding=True),
    ]
    assert to_yield(holders, 10, NOW) == [4, 2, 1, 5]
    assert to_yield(holders, 2, NOW) == [4, 2]
    assert to_yield(holders, 0, NOW) == to_yield(holders, -3, NOW) == []


def test_clock_that_begins_anew():
    """Times are modulo 2^32, and one from the future is now."""
    assert elapsed((1 << 32) - 10, 5) == 15
    assert elapsed(5, 4) == 0
