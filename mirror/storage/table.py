"""Tables of small facts: text under text, shared by processes.

A table is a cache of facts, never the truth: a read that fails is a fact not known, a write that fails is a fact to be learned
again, and a table whose database is damaged is started anew. While its database cannot be opened nothing is known and nothing is
kept.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sqlite3
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

import structlog

from mirror.storage import database as databases
from mirror.storage.database import FAILURES, Database, Unavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Text sorts before everything that does not belong here but numbers, which come before "".
_PAGE = "SELECT key FROM Cache WHERE key > ? AND raw = 1 AND typeof(key) = 'text' ORDER BY key LIMIT 250"
_PAGE_ROWS = 250
_WALK_BUSY_S = 2.0
# A database that has failed is opened again at most this often.
_MEND_INTERVAL_S = 10.0
_UNAVAILABLE_INTERVAL_S = 1.0
_TELL_INTERVAL_S = 60.0
# Usually opening takes some milliseconds.
_OPEN_WAIT_S = 0.02
# Another process may have started a damaged database anew.
_LOOK_INTERVAL_S = 1.0


class Table:
    """One table, in a directory of its own. Reads cost microseconds; writes belong in a thread.

    Attributes:
        failures: how many reads and writes have failed; a lookup that must not be wrong compares it before and after.
    """

    def __init__(self, directory: str) -> None:
        self._base = directory
        self._database: Database | None = None
        self._number = 0
        self.failures = 0
        self._trouble: Exception | None = None
        self._retry_at = self._look_at = self._tell_at = 0.0
        self._mending = threading.Lock()
        self._open()

    def close(self) -> None:
        """Close this thread's connection to the database."""
        if self._database is not None:
            self._database.close()

    def get(self, key: str) -> Any:
        """The value under a key, or None."""
        return self._read(lambda database: database.get(key))

    def set(self, key: str, value: Any, seconds: float | None = None, label: str | None = None) -> None:
        """Keep a value.

        Args:
            seconds: how long; for good if nothing is said.
            label: what else the key is to be found by (`labelled`).
        """
        database = self._mended()
        if database is None:
            return
        try:
            database.set(key, value, expire=seconds, tag=label)
        except FAILURES as error:
            self._failed("index_write_failed", error)

    def delete(self, key: str) -> None:
        """Forget a key."""
        self.delete_many([key])

    def change(self, work: Callable[[], T]) -> T | None:
        """Do several reads and writes in one step, between which no other process writes; None if the table cannot be had."""
        database = self._mended()
        if database is None:
            return None
        try:
            with database.transact():
                return work()
        except FAILURES as error:
            self._failed("index_write_failed", error)
            return None

    def set_many(self, rows: Iterable[tuple[str, Any, str | None]]) -> None:
        """Keep several values, each with its label or None, all of them or none."""
        database = self._mended()
        if database is None:
            return
        try:
            with database.transact():
                for key, value, label in rows:
                    database.set(key, value, tag=label)
        except FAILURES as error:
            self._failed("index_write_failed", error)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Forget several keys, all of them or none."""
        database = self._mended()
        if database is None:
            return
        try:
            with database.transact():
                for key in keys:
                    database.delete(key)
        except FAILURES as error:
            self._failed("index_write_failed", error)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Every key that begins with `prefix`, in order and a page at a time, those that came or went meanwhile perhaps not."""
        if self._mended() is None:
            return
        try:
            yield from itertools.takewhile(lambda key: key.startswith(prefix), self._walk(prefix))
        except FAILURES as error:
            self._failed("index_read_failed", error)

    def keys_from(self, prefix: str, most: int = -1) -> list[str]:
        """Every key that begins with `prefix`, in order; at most `most`, -1 for all."""
        return self._read(lambda database: database.keys_from(prefix, most)) or []

    def labelled(self, label: str, most: int = -1) -> list[str]:
        """The keys of all values that were put with a label; at most `most`, -1 for all."""
        return self._read(lambda database: database.labelled(label, most)) or []

    def written_at(self, key: str) -> float | None:
        """When a value was put, in seconds since the epoch; None if there is none."""
        return self._read(lambda database: database.written_at(key))

    def groups_from(self, prefix: str) -> list[str]:
        """Of all keys `prefix`NAME|… the first one for each NAME, at a price that grows with the number of names only."""
        return self._read(lambda database: database.groups_from(prefix)) or []

    def label(self, prefix: str, expression: str) -> None:
        """Give a label to the values under `prefix` that an earlier version has put without one.

        Args:
            expression: SQL over `key` and `value`, which is valid JSON.
        """
        self._read(lambda database: database.label(prefix, expression))

    def items_from(self, prefix: str, most: int = -1) -> Iterator[tuple[str, Any]]:
        """Every key that begins with `prefix`, with its value, read at once; an unreadable one hides no other.

        Args:
            most: so many at most, -1 for all.
        """
        for key, value in self._read(lambda database: database.rows_from(prefix, most)) or ():
            with contextlib.suppress(ValueError, RecursionError):
                yield key, json.loads(value)

    def items(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Every key that begins with `prefix`, with its value, a page at a time; an unreadable one hides no other."""
        last = prefix
        while page := self._read(partial(Database.rows_after, prefix=prefix, last=last, most=_PAGE_ROWS)):
            for key, value in page:
                with contextlib.suppress(ValueError, RecursionError):
                    yield key, json.loads(value)
            last = page[-1][0]

    def _walk(self, last: str) -> Iterator[str]:
        # diskcache's own walk reads every page's predecessors again, which for a million keys takes many minutes.
        path = urllib.parse.quote(os.path.abspath(databases.file_of(self._base, self._number)))
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=rw", timeout=_WALK_BUSY_S, uri=True)) as connection:
            while page := connection.execute(_PAGE, (last,)).fetchall():
                for (last,) in page:
                    yield last

    def _read(self, look_up: Callable[[Database], T]) -> T | None:
        database = self._current()
        if database is None:
            return None
        try:
            return look_up(database)
        except FAILURES as error:
            self._failed("index_read_failed", error)
            return None

    # ---- the database, which may fail and be replaced at any time

    def _failed(self, event: str, error: Exception) -> None:
        self.failures += 1
        log.warning(event, path=databases.path_of(self._base, self._number), cause=str(error))
        if not databases.is_passing(error) and not databases.is_full(error):
            # Opening it again may take long: whoever writes does that, in a thread.
            self._trouble = error

    def _current(self) -> Database | None:
        """The database to read from; soon the successor of the one so far, if another process has made one."""
        if time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_INTERVAL_S
            if os.path.isdir(databases.path_of(self._base, self._number + 1)) and not self._mending.locked():
                # Others may have it locked for seconds, and who reads may be the event loop.
                opening = threading.Thread(target=self._open, name="open-index", daemon=True)
                opening.start()
                opening.join(_OPEN_WAIT_S)
        if self._database is None:
            self.failures += 1
        return self._database

    def _mended(self) -> Database | None:
        """The database to write to, opened again if it has failed."""
        if (self._trouble is not None or self._database is None) and time.monotonic() >= self._retry_at:
            self._open()
        return self._current()

    def _open(self) -> None:
        if not self._mending.acquire(blocking=False):
            return
        try:
            error, self._trouble = self._trouble, None
            if error is not None and databases.is_damage(error):
                databases.supersede(self._base, self._number, str(error))
            opened = databases.open_newest(self._base)
            self._database, self._number = opened.database, opened.number
            self._retry_at = time.monotonic() + _MEND_INTERVAL_S
        except Unavailable as error:
            # What could be read until now may still be: only a database that can be opened takes its place.
            self._retry_at = time.monotonic() + _UNAVAILABLE_INTERVAL_S
            self._tell_unavailable(str(error))
        finally:
            self._mending.release()

    def _tell_unavailable(self, cause: str) -> None:
        """Log it, but not with each attempt."""
        if time.monotonic() < self._tell_at:
            return
        self._tell_at = time.monotonic() + _TELL_INTERVAL_S
        consequence = "what it knows is not known for now" if self._database is None else "it is read on, and not written"
        log.error("index_unavailable", path=self._base, cause=cause, consequence=consequence)
