"""The databases of the index: SQLite through diskcache. The only module that knows diskcache.

A database has its own directory. A damaged one is neither repaired nor renamed, because other processes may have it open, and
SQLite uses the names of its files. Instead a successor is created beside it, `tags.2` beside `tags`, and every process that finds
the successor changes to it. The newest one counts.

Values are JSON text. Pickle, the object format of diskcache, is neither written nor read (CVE-2025-69872).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import time
import uuid
from dataclasses import dataclass
from functools import partial
from typing import Any

import diskcache
import structlog

log = structlog.get_logger(__name__)

# The longest wait for a write of another process.
_BUSY_TIMEOUT_S = 2.0
# Pages of 4 KiB in each connection, of which each thread has one to each table; the kernel caches them for all.
_CACHED_PAGES = 256
_ROWS = """SELECT key, value FROM Cache WHERE key >= ? AND key < ? AND mode = ? AND typeof(value) = 'text'
    AND (expire_time IS NULL OR expire_time > ?) ORDER BY key LIMIT ?"""
_ROWS_AFTER = _ROWS.replace(">= ?", "> ?")
_KEYS = "SELECT key FROM Cache WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
# The version of a database in which all values have their labels.
_LABELLED_VERSION = 1
_LABELLED = "SELECT key FROM Cache WHERE tag = ? ORDER BY rowid LIMIT ?"
# The first key of each group, by one lookup in the index over keys for each: `kind|name}` follows all `kind|name|rest`.
_GROUPS = """WITH RECURSIVE first(found) AS (
    SELECT min(key) FROM Cache WHERE key >= :prefix AND key < :after
    UNION ALL
    SELECT (
        SELECT min(key) FROM Cache WHERE key < :after
        AND key > :prefix || substr(found, :start, instr(substr(found, :start), '|') - 1) || '}'
    ) FROM first WHERE found IS NOT NULL
) SELECT found FROM first WHERE found IS NOT NULL"""
# Errors of the file itself (https://www.sqlite.org/rescode.html).
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT}
# Errors with another cause.
_PASSING = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_PERM}
# More than SQLite needs to open a database: its shared memory, and the pages that diskcache always writes.
_PROBE_BYTES = 1 << 20
# A failure of the file or the disk counts as one of the disk so often before the file is superseded.
_MAX_ATTEMPTS = 3
_MAX_SUPERSEDED = 2

FAILURES = (sqlite3.Error, diskcache.Timeout, OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""The errors of reads and writes, whatever the files contain."""


class Unavailable(Exception):
    """The database cannot be opened now for another reason than damage: no space, no permission, a lock."""


class _JsonDisk(diskcache.Disk):  # type: ignore[misc]
    """Stores nothing but text under text."""

    def put(self, key: str) -> tuple[str, bool]:
        return key, True

    def get(self, key: Any, raw: bool) -> str:
        if not raw or not isinstance(key, str):
            raise ValueError("a key of the index that is not text")
        return key

    def store(self, value: Any, read: bool, key: Any = None) -> tuple[int, int, None, str]:
        return 0, diskcache.core.MODE_TEXT, None, json.dumps(value, separators=(",", ":"))

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> Any:
        if mode != diskcache.core.MODE_TEXT or filename is not None or not isinstance(value, str):
            raise ValueError("a value of the index that is not text")
        return json.loads(value)


class Database(diskcache.Cache):  # type: ignore[misc]
    """An open database."""

    def keys_from(self, prefix: str, most: int) -> list[str]:
        """Return the keys that begin with `prefix`, through the index over keys; at most `most`, -1 for all."""
        return [key for (key,) in self._sql(_KEYS, (prefix, _after(prefix), most)).fetchall()]

    def labelled(self, label: str, most: int) -> list[str]:
        """Return the keys with a label; at most `most`, -1 for all."""
        return [key for (key,) in self._sql(_LABELLED, (label, most)).fetchall()]

    def written_at(self, key: str) -> float | None:
        """Return when a value was set, in seconds since the epoch; None if there is none."""
        return next((when for (when,) in self._sql("SELECT store_time FROM Cache WHERE key = ? AND raw = 1", (key,))), None)

    def groups_from(self, prefix: str) -> list[str]:
        """Return the first key `prefix`NAME|… for each NAME."""
        values = {"prefix": prefix, "after": _after(prefix), "start": len(prefix) + 1}
        return [key for (key,) in self._sql(_GROUPS, values).fetchall()]

    def label(self, prefix: str, expression: str) -> None:
        """Label the values under `prefix` that an earlier version has set without a label.

        Args:
            expression: SQL over `key` and `value`, which is valid JSON.
        """
        if self._sql("PRAGMA user_version").fetchall() == [(_LABELLED_VERSION,)]:
            return
        where = "tag IS NULL AND key >= ? AND key < ? AND json_valid(value)"
        with self.transact():
            self._sql(f"UPDATE Cache SET tag = {expression} WHERE {where}", (prefix, _after(prefix)))  # noqa: S608 - our own
            self._sql(f"PRAGMA user_version = {_LABELLED_VERSION}")

    def rows_from(self, prefix: str, most: int, last: str | None = None) -> list[tuple[str, str]]:
        """Return the keys that begin with `prefix`, with their stored values; at most `most`, -1 for all.

        Args:
            last: only keys that follow this one.
        """
        query, first = (_ROWS, prefix) if last is None else (_ROWS_AFTER, last)
        values = (first, _after(prefix), diskcache.core.MODE_TEXT, time.time(), most)
        rows: list[tuple[str, str]] = self._sql(query, values).fetchall()
        return rows


@dataclass(frozen=True, slots=True)
class Opened:
    """A database and its number among those of its name."""

    database: Database
    number: int


def open_newest(base: str) -> Opened:
    """Open the newest database of a name, and supersede it if it is damaged.

    Args:
        base: path of the directory of the first one.

    Raises:
        Unavailable: it cannot be opened now.
    """
    doubts = 0
    for _ in range(2 * _MAX_ATTEMPTS):
        number = newest(base)
        path = path_of(base, number)
        try:
            return Opened(_connect(path), number)
        except FAILURES as error:
            if not is_damage(error):
                doubts += 1
                if is_passing(error) or not _is_usable(path):
                    raise Unavailable(f"{type(error).__name__}: {error}") from error
                if doubts < _MAX_ATTEMPTS:
                    continue
            supersede(base, number, str(error))
            doubts = 0
    raise Unavailable("each new database is damaged at once")


def newest(base: str) -> int:
    """Return the number of the newest database of a name, 1 if there is none."""
    pattern = re.compile(re.escape(os.path.basename(base)) + r"\.([1-9][0-9]{0,8})")
    found = [1]
    with contextlib.suppress(OSError):
        found += [int(match[1]) for name in os.listdir(os.path.dirname(base)) if (match := pattern.fullmatch(name))]
    return max(found)


def path_of(base: str, number: int) -> str:
    """Return the directory of a database."""
    return base if number == 1 else f"{base}.{number}"


def file_of(base: str, number: int) -> str:
    """Return the file of a database."""
    return f"{path_of(base, number)}/{diskcache.core.DBNAME}"


def is_damage(error: Exception) -> bool:
    """Whether a failure means that the files are damaged."""
    if isinstance(error, sqlite3.Error):
        return _code(error) in _DAMAGED
    # An error about a damaged schema quotes it, perhaps not as UTF-8; diskcache fails on foreign settings with any error.
    return not isinstance(error, (OSError, diskcache.Timeout))


def is_passing(error: Exception) -> bool:
    """Whether a failure has a passing cause: another process has locked the database, or a single value is unreadable."""
    if isinstance(error, sqlite3.Error):
        return _code(error) in _PASSING
    return not isinstance(error, UnicodeDecodeError)


def is_full(error: Exception) -> bool:
    """Whether a write failed because no space is left, so that reads still work."""
    return isinstance(error, sqlite3.Error) and _code(error) == sqlite3.SQLITE_FULL


def supersede(base: str, number: int, cause: str) -> None:
    """Create the successor of a damaged database; processes that do so at the same time create the same one.

    Raises:
        Unavailable: it cannot be created.
    """
    damaged, successor = path_of(base, number), path_of(base, number + 1)
    try:
        os.mkdir(successor, 0o700)
    except FileExistsError:
        return
    except OSError as error:
        raise Unavailable(f"{successor}: {error.strerror}") from error
    log.warning("index_damaged", path=damaged, successor=successor, cause=cause, consequence="what it knew is learned anew")
    for old in range(1, number - _MAX_SUPERSEDED):
        shutil.rmtree(path_of(base, old), ignore_errors=True)


def superseded(directory: str) -> list[str]:
    """Return the paths of all databases in a directory that have a successor."""
    found = []
    with contextlib.suppress(OSError):
        for base in {re.sub(r"\.[0-9]+$", "", name) for name in os.listdir(directory)}:
            last = newest(f"{directory}/{base}")
            paths = (path_of(f"{directory}/{base}", number) for number in range(1, last))
            found += [path for path in paths if os.path.isdir(path)]
    return found


def _connect(path: str) -> Database:
    os.makedirs(path, mode=0o700, exist_ok=True)
    _check(f"{path}/{diskcache.core.DBNAME}")
    database = Database(
        path,
        timeout=_BUSY_TIMEOUT_S,
        disk=_JsonDisk,
        eviction_policy="none",
        size_limit=1 << 62,
        statistics=0,
        tag_index=1,
        sqlite_mmap_size=0,
        sqlite_cache_size=_CACHED_PAGES,
    )
    try:
        database.set("probe", 1)
        database.get("probe")
        database.delete("probe")
    except BaseException:
        database.close()
        raise
    return database


def _check(path: str) -> None:
    """Test within a bounded time whether a database can be written; diskcache waits a minute for a lock."""
    # Only if it does not exist: closing a descriptor of an open database would release the locks of SQLite.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    # SQLite gives its other files the same mode.
    if os.stat(path).st_mode & 0o077:
        os.chmod(path, 0o600)
    with contextlib.closing(sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
        connection.execute("ROLLBACK")


def _is_usable(path: str) -> bool:
    """Whether this process may use the files, and the disk takes as many bytes as opening a database needs."""
    files = [f"{path}/{diskcache.core.DBNAME}{suffix}" for suffix in ("", "-wal", "-shm")]
    if not all(os.access(file, os.R_OK | os.W_OK, effective_ids=True) for file in files if os.path.lexists(file)):
        return False
    probe = f"{path}/probe-{uuid.uuid4().hex}"
    data = os.urandom(_PROBE_BYTES)
    try:
        with open(probe, "xb", opener=partial(os.open, mode=0o600)) as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with open(probe, "rb") as written:
            return written.read() == data
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):
            os.unlink(probe)


def _code(error: sqlite3.Error) -> int | None:
    """SQLite's primary result code."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _after(prefix: str) -> str:
    """Return the first text that sorts after all texts that begin with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else chr(0x10FFFF)
