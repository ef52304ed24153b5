"""A table of facts: never a pickle, never in the way when it is damaged, shared by processes."""

import contextlib
import os
import pickle
import sqlite3
import subprocess
import sys
import threading
import time

import pytest

from mirror.storage import database
from mirror.storage.table import Table
from tests.support.waiting import LIMIT

# diskcache's numbers for how a value is stored.
RAW, BINARY, TEXT, PICKLE = 1, 2, 3, 4


@pytest.fixture
def directory(tmp_path):
    return str(tmp_path / "table")


@pytest.fixture
def table(directory):
    one = Table(directory)
    yield one
    one.close()


def rows(directory, query, *values):
    """Run SQL on the database behind the table's back."""
    database = sqlite3.connect(f"{directory}/cache.db")
    try:
        return database.execute(query, values).fetchall()
    finally:
        database.commit()
        database.close()


@pytest.mark.parametrize("value", [0, 1.5, "text", True, [1, "b"], {"a": {"b": None}}])
def test_values_are_kept_over_a_restart(table, directory, value):
    """What was put is there for this and for the next process, exactly."""
    table.set("key", value)
    assert table.get("key") == value
    again = Table(directory)
    assert (again.get("key"), list(again.items())) == (value, [("key", value)])
    again.close()


def test_what_is_put_changes_and_goes(table):
    """A later value replaces the earlier; a deleted one is not known, and deleting it again is no error."""
    assert table.get("key") is None
    table.set("key", 1)
    table.set("key", 2)
    assert table.get("key") == 2
    table.delete("key")
    table.delete("key")
    assert table.get("key") is None
    assert list(table.keys()) == []


def test_walk_beside_changes(table):
    """A walk goes through every key that stays, in order, while others are deleted under it."""
    for i in range(300):
        table.set(f"key {i:03}", i)
    seen = []
    for key in table.keys():  # noqa: SIM118 - no mapping
        seen.append(key)
        table.delete(key)
    assert seen == [f"key {i:03}" for i in range(300)]
    assert list(table.keys()) == []


def test_expiry(table, directory):
    """A value is good until its time has come, and its row goes with later writes."""
    table.set("short", 1, 30)
    table.set("long", 1)
    assert table.get("short") == 1
    rows(directory, "UPDATE Cache SET expire_time = 1.0 WHERE key = 'short'")
    assert table.get("short") is None
    assert table.get("long") == 1
    table.set("other", 1)
    assert rows(directory, "SELECT key FROM Cache ORDER BY key") == [("long",), ("other",)]


class Bomb:
    """Whoever unpickles this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.fixture
def no_pickle(monkeypatch):
    """Any use of pickle is an error."""

    def refused(*args, **kwargs):
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refused)


def test_everything_works_without_pickle(no_pickle, directory):
    """No fact is ever written or read by pickle: keys and values in the database are text."""
    table = Table(directory)
    table.set("one", {"a": [1, 2]})
    table.set("two", 1.5, 30)
    assert dict(table.items()) == {"one": {"a": [1, 2]}, "two": 1.5}
    table.close()
    stored = rows(directory, "SELECT typeof(key), typeof(value), raw, filename FROM Cache")
    assert stored == [("text", "text", 1, None)] * 2


@pytest.mark.parametrize("mode", [RAW, BINARY, TEXT, PICKLE])
def test_pickled_value_is_refused(table, directory, tmp_path, mode):
    """A value that somebody planted as a pickle is not run: the fact is not known, and can be put again."""
    table.set("key", 1)
    rows(directory, "UPDATE Cache SET mode = ?, value = ?", mode, pickle.dumps(Bomb(str(tmp_path / "exploded"))))
    assert table.get("key") is None
    assert list(table.items()) == []
    assert not (tmp_path / "exploded").exists()
    table.set("key", 2)
    assert table.get("key") == 2


@pytest.mark.parametrize("mode", [BINARY, TEXT, PICKLE])
def test_value_in_a_file_is_refused(table, directory, tmp_path, mode):
    """A value that points to a file, where diskcache keeps large pickles, is not read."""
    table.set("key", 1)
    with open(f"{directory}/planted", "wb") as file:
        pickle.dump(Bomb(str(tmp_path / "exploded")), file)
    rows(directory, "UPDATE Cache SET mode = ?, value = NULL, filename = 'planted'", mode)
    assert table.get("key") is None
    assert not (tmp_path / "exploded").exists()


def test_pickled_key_is_refused(table, directory, tmp_path):
    """A key that somebody planted as a pickle is not run."""
    table.set("key", 1)
    rows(directory, "UPDATE Cache SET raw = 0, key = ?", pickle.dumps(Bomb(str(tmp_path / "exploded"))))
    assert list(table.items()) == []
    assert not (tmp_path / "exploded").exists()


def test_unreadable_value_does_not_hide_the_others(table, directory):
    """A walk leaves out what cannot be read, and nothing else."""
    for name in ("a", "b", "c"):
        table.set(name, name)
    rows(directory, "UPDATE Cache SET mode = ? WHERE key = 'a'", PICKLE)
    assert list(table.items()) == [("b", "b"), ("c", "c")]


@pytest.mark.parametrize("damage", [b"this is no database" * 100, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_damaged_database_is_superseded(directory, tmp_path, damage):
    """A database that cannot be opened is kept for a look at it, and a new one works in its place."""
    table = Table(directory)
    table.set("key", 1)
    table.close()
    for name in os.listdir(directory):
        os.unlink(f"{directory}/{name}")
    with open(f"{directory}/cache.db", "wb") as file:
        file.write(damage)
    again = Table(directory)
    assert again.get("key") is None
    again.set("key", 2)
    assert again.get("key") == 2
    again.close()
    assert (tmp_path / "table" / "cache.db").read_bytes() == damage
    assert (tmp_path / "table.2").is_dir()


def test_damaged_twice_in_a_second(directory):
    """A crash loop over a failing disk does not end at a name that is already taken."""
    for _ in range(2):
        os.makedirs(directory, exist_ok=True)
        with open(f"{directory}/cache.db", "wb") as file:
            file.write(b"this is no database" * 100)
        Table(directory).close()


def test_database_that_goes_bad_in_use(table, directory):
    """When the database breaks under a running mirror, facts are not known and writes are dropped; nothing is raised."""
    table.set("key", 1)
    rows(directory, "DROP TABLE Cache")
    assert table.get("key") is None
    assert list(table.items()) == []
    table.set("key", 1)
    table.delete("key")


def test_write_that_another_process_blocks_is_given_up(directory, monkeypatch):
    """A write waits for another process's transaction only so long, and reads go on meanwhile."""
    monkeypatch.setattr("mirror.storage.database._BUSY_TIMEOUT_S", 0.05)
    table = Table(directory)
    table.set("key", 1)
    blocker = sqlite3.connect(f"{directory}/cache.db", isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    try:
        table.set("other", 1)
        assert table.get("key") == 1
        # What is read is right, so a purge that relies on that goes on.
        assert table.failures == 0
    finally:
        blocker.execute("ROLLBACK")
        blocker.close()
    assert table.get("other") is None
    table.close()


WRITER = """
import sys
import threading
import time
from mirror.storage import database
from mirror.storage.table import Table
table = Table(sys.argv[1])
for i in range(60):
    table.set(f"{sys.argv[2]} {i}", i)
table.close()
"""


def test_processes_share_one_table(table, directory):
    """What several processes write at the same time is all there, for each of them."""
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, directory, name]) for name in "abc"]
    for writer in writers:
        assert writer.wait(30) == 0
    assert dict(table.items()) == {f"{name} {i}": i for name in "abc" for i in range(60)}


def test_damaged_in_use_is_learned_anew(directory, monkeypatch):
    """A database that is damaged under an open table is set aside at the next failure, and facts are kept again."""
    monkeypatch.setattr("mirror.storage.table._REOPEN_INTERVAL_S", 0.0)
    table = Table(directory)
    table.set("before", 1)
    for name in os.listdir(directory):
        with open(f"{directory}/{name}", "r+b") as file:
            file.write(b"this is no database" * 200)
    # Another thread has another connection, with nothing of the old pages in it.
    thread = threading.Thread(target=table.get, args=("before",))
    thread.start()
    thread.join(LIMIT)
    table.set("after", 2)
    assert table.get("after") == 2
    assert table.get("before") is None
    table.close()


def test_locked_successor_delays_no_read(tmp_path):
    """Who reads does not wait until a successor that another process has locked can be opened; later it is gone over to."""
    base = str(tmp_path / "tags")
    reader, other = Table(base), Table(base)
    reader.set("key", 1)
    database.supersede(base, 1, "damaged in a test")
    other._successor_at = 0.0
    while other._number == 1:
        other.get("key")
    with contextlib.closing(sqlite3.connect(database.file_of(base, 2), isolation_level=None)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        reader._successor_at = 0.0
        began = time.monotonic()
        assert reader.get("key") == 1
        assert time.monotonic() - began < 1.0
    deadline = time.monotonic() + 10
    while reader._number == 1 and time.monotonic() < deadline:
        reader.get("key")
        time.sleep(0.01)
    assert (reader._number, reader.get("key")) == (2, None)
