"""The index's files in any condition: what is damaged is started anew, and everything else waits for better times."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mirror.config.sections import Storage
from mirror.core.digest import Digest
from mirror.storage.coordination import wait_in_thread
from mirror.storage.store import Store
from mirror.storage.table import Table
from tests.support.waiting import LIMIT

FILES = ("cache.db", "cache.db-wal", "cache.db-shm")

# A process with a table open, which does what it is told line by line.
PROCESS = """
import sys
from mirror.storage import table as tables
tables._SUCCESSOR_INTERVAL_S = tables._REOPEN_INTERVAL_S = 0.0
table = tables.Table(sys.argv[1])
for number in range(40):
    table.set(f"key {number}", "x" * 200)
table.close()
table = tables.Table(sys.argv[1])
for number in range(40):
    table.set(f"key {number}", "y" * 200)
print("open", flush=True)
for line in sys.stdin:
    word, key = line.split()
    print(table.set(key, 1) if word == "set" else table.get(key), flush=True)
"""


class Living:
    """Another process that has the table open."""

    def __init__(self, directory):
        arguments = [sys.executable, "-c", PROCESS, directory]
        self._process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        while self._process.stdout.readline() != "open\n":
            pass

    def ask(self, word, key):
        self._process.stdin.write(f"{word} {key}\n")
        self._process.stdin.flush()
        while (line := self._process.stdout.readline().strip()) not in ("None", "1"):
            assert line, "the process has died"
        return line

    def kill(self):
        self._process.send_signal(signal.SIGKILL)
        self._process.communicate(timeout=LIMIT)


@pytest.fixture
def directory(tmp_path):
    return str(tmp_path / "index" / "tags")


@pytest.fixture
def living(directory):
    process = Living(directory)
    yield process
    process.kill()


def overwrite(path, offset, data):
    """Write into a file behind SQLite's back; without opening it where SQLite has it open: that would take its locks along."""
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.fixture
def impatient(monkeypatch):
    for name in ("_SUCCESSOR_INTERVAL_S", "_REOPEN_INTERVAL_S", "_UNAVAILABLE_INTERVAL_S"):
        monkeypatch.setattr(f"mirror.storage.table.{name}", 0.0)


# ---- a full disk


class Filled:
    """A disk on which nothing is left."""

    def __init__(self, path):
        self._path = path / "filler"
        with open(self._path, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(4096))
            except OSError:
                pass

    def free(self):
        self._path.unlink()


@pytest.mark.parametrize("small_disk", ["2m"], indirect=True)
def test_full_disk_at_start(small_disk, impatient):
    """An index that cannot be opened for want of space is not touched; what it knows is known again when there is some."""
    directory = f"{small_disk.path}/tags"
    table = Table(directory)
    table.set("key", 1)
    table.close()
    filled = Filled(small_disk.path)
    before = os.stat(f"{directory}/cache.db")
    table = Table(directory)
    assert table.get("key") in (None, 1)
    table.set("other", 1)
    assert [key for key in table.keys() if key != "key"] == []  # noqa: SIM118 - no mapping
    assert sorted(os.listdir(small_disk.path)) == ["filler", "tags"]
    assert os.stat(f"{directory}/cache.db").st_ino == before.st_ino
    filled.free()
    # A write is dropped while a thread of a reader is opening the database.
    assert wait_in_thread(lambda: table.set("later", 1) or table.get("later") == 1, LIMIT)
    assert table.get("key") == 1
    opening = [thread for thread in threading.enumerate() if thread.name == "open-index"]
    for thread in opening:
        thread.join(LIMIT)
    table.close()


@pytest.mark.parametrize("small_disk", ["2m"], indirect=True)
def test_disk_that_fills_up_in_use(small_disk, impatient, monkeypatch):
    """On a disk that has become full what was known is known on, and it is not tried in vain to open the index anew."""
    table = Table(f"{small_disk.path}/tags")
    table.set("key", 1)
    filled = Filled(small_disk.path)
    opened = []
    monkeypatch.setattr("mirror.storage.database.open_newest", lambda base: opened.append(base))
    for number in range(200):
        table.set(f"large {number}", "x" * 4000)
    assert table.failures > 0
    assert (table.get("key"), table.get("large 199"), opened) == (1, None, [])
    filled.free()
    table.set("later", 1)
    assert table.get("later") == 1
    table.close()


@pytest.mark.parametrize("small_disk", ["4m"], indirect=True)
def test_store_on_a_full_disk(small_disk):
    """A store is opened on a full disk: what it holds is there, and what it knows is there after the next start."""
    config = Storage(path=small_disk.path / "store", min_free="0")
    store, content = Store(config), b"held"
    store.files.put(Digest.of(content), content)
    store.index.grants.put("blob", "docker.io", Digest.of(content), 4)
    store.close()
    filled = Filled(small_disk.path)
    store = Store(config)
    assert store.files.read(Digest.of(content), 100) == content
    store.generation.change()
    store.close()
    filled.free()
    store = Store(config)
    assert store.index.grants.get("blob", "docker.io", Digest.of(content)) == 4
    store.close()


def test_file_of_somebody_else(directory, impatient):
    """Files that this process may not use are no damage: they stay, and count again when their rights have been mended."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be somebody else for a moment")
    table = Table(directory)
    table.set("key", 1)
    table.close()
    os.chmod(os.path.dirname(directory), 0o777)
    os.chown(directory, 65534, 65534)
    for parent in Path(directory).parents[1:]:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(0o755)
    os.seteuid(65534)
    try:
        table = Table(directory)
        assert table.get("key") is None
    finally:
        os.seteuid(0)
    assert os.listdir(os.path.dirname(directory)) == ["tags"]
    table.set("other", 1)
    assert (table.get("key"), table.get("other")) == (1, 1)
    table.close()


# ---- damage


def test_any_byte(directory, tmp_path, living):
    """Whatever one byte of the files says that a killed process has left, the table opens, takes a fact and tells it."""
    living.kill()
    header = [*range(100), *range(100, 4096, 211)]
    offsets = {"cache.db": header, "cache.db-wal": [*range(0, 60, 2)], "cache.db-shm": [*range(0, 136, 8)]}
    for name, places in offsets.items():
        assert os.path.exists(f"{directory}/{name}")
        for offset in places:
            copy = str(tmp_path / "copies" / f"{name}-{offset}")
            shutil.copytree(directory, copy)
            overwrite(f"{copy}/{name}", offset, b"\xff" if offset % 2 else b"\x03")
            table = Table(copy)
            table.set("after", 1)
            assert table.get("after") == 1, (name, offset)
            table.close()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("seed", [1, 2])
def test_damaged_under_a_living_process(directory, living, impatient, name, seed):
    """A process that starts on damaged files works at once; one that has them open soon knows the same. Nothing is renamed."""
    before = os.stat(directory).st_ino
    size = min(4096, os.stat(f"{directory}/{name}").st_size)
    overwrite(f"{directory}/{name}", 0, random.Random(seed).randbytes(size))
    table = Table(directory)
    try:
        table.set("mine", 1)
        assert table.get("mine") == 1
        assert os.stat(directory).st_ino == before
        for _ in range(3):
            living.ask("set", "theirs")
            table.set("mine", 1)
        assert living.ask("get", "mine") == "1"
        assert table.get("theirs") == 1
    finally:
        table.close()


def test_all_start_at_once_on_damage(directory, living):
    """Of many processes that find the damage at the same moment all end up with one and the same new database."""
    living.kill()
    for name in FILES:
        overwrite(f"{directory}/{name}", 0, random.Random(7).randbytes(4096))
    script = "import sys; from mirror.storage.table import Table; Table(sys.argv[1]).set(sys.argv[2], 1)"
    processes = [subprocess.Popen([sys.executable, "-c", script, directory, f"of {number}"]) for number in range(6)]
    assert [process.wait(30) for process in processes] == [0] * 6
    table = Table(directory)
    assert sorted(table.keys()) == [f"of {number}" for number in range(6)]
    table.close()
    assert sorted(os.listdir(os.path.dirname(directory))) == ["tags", "tags.2"]


def test_private_files(directory):
    """Nobody else can read what the index knows, whatever the umask is, nor what an earlier version has left readable."""
    old = os.umask(0o022)
    try:
        table = Table(directory)
        table.set("key", 1)
        table.close()
        os.chmod(f"{directory}/cache.db", 0o644)
        table = Table(directory)
        table.set("key", 2)
        modes = {name: os.stat(f"{directory}/{name}").st_mode & 0o777 for name in os.listdir(directory)}
        assert modes == dict.fromkeys(FILES, 0o600)
        table.close()
    finally:
        os.umask(old)


def test_deep_value(directory):
    """A value that is nested deeper than anything that was ever put is a fact that is not known."""
    import sqlite3

    table = Table(directory)
    table.set("key", 1)
    table.set("other", 2)
    connection = sqlite3.connect(f"{directory}/cache.db")
    with connection:
        connection.execute("UPDATE Cache SET value = ? WHERE key = 'key'", ("[" * 100_000,))
    connection.close()
    assert table.get("key") is None
    assert list(table.items()) == [("other", 2)]
    table.close()
