"""Counts of several processes in one piece of memory."""

import contextlib

import pytest

from mirror.core.counts import CountTable, Total

SLOTS = 3


@pytest.fixture
def tables():
    """One memory, seen from three processes."""
    memory = memoryview(bytearray(CountTable.size(SLOTS)))
    return [CountTable(memory, SLOTS, own) for own in range(SLOTS)]


def test_total(tables):
    """A limit counts for all together, and the number falls with each that leaves."""
    counts = [table.count(Total.CONNECTIONS) for table in tables]
    assert [count.enter(2) for count in counts] == [True, True, False]
    assert (counts[2].total, counts[2].own) == (2, 0)
    counts[0].leave()
    assert counts[2].enter(2)
    assert [count.total for count in counts] == [2] * SLOTS
    assert counts[1].enter(0)


def test_client(tables):
    """Every process finds the same row for an address, and another one for another address."""
    one, same, other = tables[0].acquire("10.0.0.1"), tables[1].acquire("10.0.0.1"), tables[1].acquire("10.0.0.2")
    assert one.requests.enter(1)
    assert not same.requests.enter(1)
    assert other.requests.enter(1)
    assert one.downloads.enter(1)
    assert same.downloads.total == 1


def test_row_goes_with_its_last_user(tables):
    """A row is taken by another address when no process counts anything of the first one any more."""
    first = tables[0].acquire("10.0.0.1")
    again = tables[0].acquire("10.0.0.1")
    assert again is first
    second = tables[1].acquire("10.0.0.1")
    tables[0].release(first)
    tables[0].release(again)
    assert tables[2].acquire("10.0.0.1").row == second.row
    assert tables[0].acquire("10.0.0.1").row == second.row


def test_dead_process(tables):
    """What a process had counted goes with its slot; the others' stays."""
    lost, kept = (table.acquire("10.0.0.1") for table in tables[:2])
    for client in (lost, kept):
        client.connections.enter(0)
    for table in tables[:2]:
        table.count(Total.UPSTREAM).enter(0)
    tables[2].clear(0)
    assert kept.connections.total == 1
    assert tables[1].count(Total.UPSTREAM).total == 1
    tables[1].release(kept)
    assert tables[2].acquire("10.0.0.1").connections.total == 1


def test_full_bucket(tables):
    """An address for which there is no row is counted by each process for itself, and disturbs nobody."""
    clients = [tables[0].acquire(f"10.{i >> 8}.{i & 255}.1") for i in range(40_000)]
    without = [client for client in clients if client.row is None]
    assert without
    assert len({client.row for client in clients}) == 1024 * 16 + 1
    assert without[0].requests.enter(1)
    assert not without[0].requests.enter(1)
    assert without[1].requests.enter(1)
    for client in clients:
        tables[0].release(client)
    assert tables[1].acquire("10.0.0.1").row is not None


def test_no_lock():
    """Without the lock an address gets no row."""
    table = CountTable(memoryview(bytearray(CountTable.size(1))), 1, 0, lambda: contextlib.nullcontext(False))
    assert table.acquire("10.0.0.1").row is None
