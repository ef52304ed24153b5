"""How fast bytes may arrive: connections of several processes that receive as fast as they may, by a clock of the test."""

import heapq

import pytest

from mirror.core.byte_rate import BURST_S, MIN_QUANTUM, ByteRate
from mirror.core.counts import CountTable

RATE = 10_000_000


@pytest.fixture
def rates():
    """The rate of one mirror, seen from three processes."""
    memory = memoryview(bytearray(CountTable.size(3)))
    return [limited(CountTable(memory, 3, own)) for own in range(3)]


def limited(table, limit=RATE):
    rate = ByteRate(table)
    rate.limit = limit
    return rate


def receive(connections, seconds, began=0.0):
    """Bytes that each connection, given as its process's rate and the most that it gets at once, receives in so many seconds."""
    received = [0] * len(connections)
    turns = [(began, index) for index in range(len(connections))]
    while turns[0][0] < began + seconds:
        now, index = heapq.heappop(turns)
        rate, piece = connections[index]
        count = min(piece, rate.quantum)
        received[index] += count
        heapq.heappush(turns, (now + max(rate.spend(count, now), 1e-6), index))
    return received


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("connections", [1, 4, 40])
def test_all_together_get_the_rate(rates, processes, connections):
    """However many there are, and in however many processes."""
    received = receive([(rates[index % processes], 1 << 20) for index in range(connections)], 10)
    slack = processes * BURST_S * RATE + connections * rates[0].quantum
    assert 10 * RATE - slack <= sum(received) <= 10 * RATE + slack


def test_connections_take_turns(rates):
    """One process has a single download, another has nine: all get as much."""
    received = receive([(rates[0], 1 << 20)] + [(rates[1], 1 << 20)] * 9, 20)
    assert max(received) < 1.1 * min(received)


def test_what_one_does_not_take_the_others_get(rates):
    """A slow upstream keeps nothing from the others."""
    slow, fast = receive([(rates[0], 1000), (rates[1], 1 << 20)], 10)
    assert slow + fast > 9.8 * RATE
    assert fast > 9 * RATE


def test_idle_time_is_not_saved_up(rates):
    """After an hour without traffic no more comes at once than after a moment."""
    receive([(rate, 1 << 20) for rate in rates], 1)
    received = receive([(rates[0], 1 << 20)], 1, began=3600)
    assert sum(received) <= (1 + BURST_S) * RATE + rates[0].quantum


def test_who_was_idle_does_not_pay_for_what_others_received(rates):
    """A process begins at once while the others use the whole rate."""
    receive([(rates[0], 1 << 20)], 1)
    receive([(rates[1], 1 << 20)], 10, began=1)
    assert rates[0].spend(1, 11.0) <= BURST_S + 2 * rates[0].quantum / RATE


def test_no_limit(rates):
    """0 keeps nobody waiting, and a limit that comes later counts from then on."""
    rates[0].limit = 0
    assert [rates[0].spend(1 << 30, 0.0) for _ in range(3)] == [0, 0, 0]
    rates[0].limit = RATE
    assert rates[0].spend(1, 1.0) == 0


def test_dead_process():
    """What a process received that has died is not counted again, nor is what its successor receives counted wrong."""
    memory = memoryview(bytearray(CountTable.size(2)))
    tables = [CountTable(memory, 2, own) for own in range(2)]
    kept, lost = limited(tables[0]), limited(tables[1])
    receive([(kept, 1 << 20), (lost, 1 << 20)], 1)
    tables[0].clear(1)
    received = receive([(kept, 1 << 20), (limited(CountTable(memory, 2, 1)), 1 << 20)], 10, began=1)
    assert 9.7 * RATE <= sum(received) <= 10.3 * RATE


@pytest.mark.parametrize(("limit", "quantum"), [(256 << 10, MIN_QUANTUM), (100_000_000, 2_000_000)])
def test_quantum(limit, quantum):
    """Small enough for many connections to have a turn within a second or two."""
    assert limited(CountTable.private(), limit).quantum == quantum
