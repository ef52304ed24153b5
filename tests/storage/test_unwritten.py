"""Facts on their way into the index: known at once, written in order by a thread, and never more than so many."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from mirror.storage import unwritten
from mirror.storage.unwritten import UnwrittenFacts
from tests.support.waiting import LIMIT


@pytest.fixture
def executor():
    with ThreadPoolExecutor(2) as threads:
        yield threads


@pytest.fixture
def facts(executor):
    return UnwrittenFacts(executor)


class Disk:
    """Takes writes, after it is let go on."""

    def __init__(self):
        self.writing, self.go_on, self.rows = threading.Event(), threading.Event(), []

    def write(self, row):
        def work():
            self.writing.set()
            assert self.go_on.wait(LIMIT)
            self.rows.append(row)

        return work


def test_known_until_written(facts, executor):
    """A fact can be read while the disk hangs, the last value counts, and all are written in their order, by one thread."""
    disk = Disk()
    facts.put("a", 1, disk.write(("a", 1)))
    assert disk.writing.wait(10)
    facts.put("b", 2, disk.write(("b", 2)))
    facts.put("a", 3, disk.write(("a", 3)))
    facts.put("c", 4)
    assert [facts.get(key) for key in "abcd"] == [3, 2, 4, None]
    disk.go_on.set()
    executor.shutdown()
    assert disk.rows == [("a", 1), ("a", 3), ("b", 2)]
    assert len(facts) == 0


def test_what_cannot_be_written(facts, executor):
    """A write that fails ends neither the others nor the thread."""
    disk = Disk()
    disk.go_on.set()

    def fails():
        raise OSError("no")

    facts.put("a", 1, fails)
    facts.put("b", 2, disk.write("b"))
    executor.shutdown()
    assert (disk.rows, len(facts)) == (["b"], 0)


def test_bounded(facts, executor, monkeypatch):
    """While the disk hangs, no more than so many facts wait; what is more is not known here."""
    monkeypatch.setattr(unwritten, "_MAX_WAITING", 10)
    disk = Disk()
    for number in range(20):
        facts.put(number, number, disk.write(number))
    assert (len(facts), facts.get(9), facts.get(10)) == (10, 9, None)
    disk.go_on.set()
    executor.shutdown()
    assert disk.rows == list(range(10))


def test_marked(facts, executor):
    """A mark is done when all that came before it is written."""
    disk = Disk()
    facts.put("a", 1, disk.write("a"))
    mark = facts.marked()
    assert not mark.done()
    disk.go_on.set()
    mark.result(10)
    assert disk.rows == ["a"]


def test_written_after_the_response(facts, executor, monkeypatch):
    """Writing waits, as long as nobody waits for it: the response that a fact comes from is sent first."""
    monkeypatch.setattr(unwritten, "_DELAY_S", LIMIT)
    written = threading.Event()
    facts.put("a", 1, written.set)
    assert not written.wait(0.1)
    mark = facts.marked()
    mark.result(10)
    assert written.is_set()


def test_what_must_be_written(facts, executor, monkeypatch):
    """It is kept beyond the limit, and waits for no response."""
    monkeypatch.setattr(unwritten, "_MAX_WAITING", 1)
    monkeypatch.setattr(unwritten, "_DELAY_S", LIMIT)
    disk, written = Disk(), threading.Event()
    facts.put("a", 1, disk.write("a"))
    facts.put_now("b", 2, written.set)
    assert disk.writing.wait(10)
    assert facts.get("b") == 2
    disk.go_on.set()
    assert written.wait(10)


def test_closed(facts, executor):
    """What comes when the store is being closed is no error."""
    executor.shutdown()
    facts.put("a", 1)
    facts.put("b", 2)
