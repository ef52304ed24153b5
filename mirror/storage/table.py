"""Tables of small facts: text under text, shared by processes.

A table is a cache of facts, never the truth: a read that fails finds nothing, a fact whose write fails is learned again, and a
damaged database is replaced by an empty one. While its database cannot be opened a table finds nothing and keeps nothing.
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

# Text sorts before all foreign keys but numbers, which sort before "".
_PAGE = "SELECT key FROM Cache WHERE key > ? AND raw = 1 AND typeof(key) = 'text' ORDER BY key LIMIT 250"
_PAGE_ROWS = 250
_WALK_BUSY_S = 2.0
# A database that has failed is opened again at most this often.
_REOPEN_INTERVAL_S = 10.0
_UNAVAILABLE_INTERVAL_S = 1.0
_LOG_INTERVAL_S = 60.0
# Usually opening takes some milliseconds.
_OPEN_WAIT_S = 0.02
# How often to look for the successor of a database that another process has found damaged.
_SUCCESSOR_INTERVAL_S = 1.0


class Table:
    """One table in its own directory. Reads cost microseconds; writes belong in a thread.

    Attributes:
        failures: how many reads have failed, and how many writes for another reason than that the table was busy; a lookup that
            has to be reliable compares it before and after.
    """

    def __init__(self, directory: str) -> None:
        self._base = directory
        self._database: Database | None = None
        self._number = 0
        self.failures = 0
        self._error: Exception | None = None
        self._retry_at = self._successor_at = self._log_at = 0.0
        self._opening = threading.Lock()
        self._open()

    def close(self) -> None:
        """Close this thread's connection to the database."""
        if self._database is not None:
            self._database.close()

    def get(self, key: str) -> Any:
        """Return the value of a key, or None."""
        return self._read(lambda database: database.get(key))

    def set(self, key: str, value: Any, seconds: float | None = None, label: str | None = None) -> None:
        """Set the value of a key.

        Args:
            seconds: time to live; None for no limit.
            label: a second name that finds the key (`labelled`).
        """
        database = self._writable()
        if database is None:
            return
        try:
            database.set(key, value, expire=seconds, tag=label)
        except FAILURES as error:
            self._failed("index_write_failed", error)

    def delete(self, key: str) -> None:
        """Delete a key."""
        self.delete_many([key])

    def change(self, work: Callable[[], T]) -> T | None:
        """Run reads and writes in one transaction, without writes of other processes; None if the table is unavailable."""
        database = self._writable()
        if database is None:
            return None
        try:
            with database.transact():
                return work()
        except FAILURES as error:
            self._failed("index_write_failed", error)
            return None

    def set_many(self, rows: Iterable[tuple[str, Any, str | None]], seconds: float | None = None) -> None:
        """Set several values, each with its label or None; all or none.

        Args:
            seconds: time to live; None for no limit.
        """
        database = self._writable()
        if database is None:
            return
        try:
            with database.transact():
                for key, value, label in rows:
                    database.set(key, value, expire=seconds, tag=label)
        except FAILURES as error:
            self._failed("index_write_failed", error)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Delete several keys; all or none."""
        database = self._writable()
        if database is None:
            return
        try:
            with database.transact():
                for key in keys:
                    database.delete(key)
        except FAILURES as error:
            self._failed("index_write_failed", error)

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys that begin with `prefix`, in order, a page at a time; concurrent changes may or may not be seen."""
        if self._writable() is None:
            return
        try:
            yield from itertools.takewhile(lambda key: key.startswith(prefix), self._walk(prefix))
        except FAILURES as error:
            self._failed("index_read_failed", error)

    def keys_from(self, prefix: str, most: int = -1) -> list[str]:
        """Return the keys that begin with `prefix`, in order; at most `most`, -1 for all."""
        return self._read(lambda database: database.keys_from(prefix, most)) or []

    def labelled(self, label: str, most: int = -1) -> list[str]:
        """Return the keys with a label; at most `most`, -1 for all."""
        return self._read(lambda database: database.labelled(label, most)) or []

    def written_at(self, key: str) -> float | None:
        """Return when a value was set, in seconds since the epoch; None if there is none."""
        return self._read(lambda database: database.written_at(key))

    def groups_from(self, prefix: str) -> list[str]:
        """Return the first key `prefix`NAME|… for each NAME; the cost depends on the number of names alone."""
        return self._read(lambda database: database.groups_from(prefix)) or []

    def label(self, prefix: str, expression: str) -> None:
        """Label the values under `prefix` that an earlier version has set without a label.

        Args:
            expression: SQL over `key` and `value`, which is valid JSON.
        """
        self._read(lambda database: database.label(prefix, expression))

    def items_from(self, prefix: str, most: int = -1) -> Iterator[tuple[str, Any]]:
        """Yield the keys that begin with `prefix`, with their values, from one read; unreadable rows are left out.

        Args:
            most: at most so many, -1 for all.
        """
        for key, value in self._read(lambda database: database.rows_from(prefix, most)) or ():
            with contextlib.suppress(ValueError, RecursionError):
                yield key, json.loads(value)

    def items(self, prefix: str = "") -> Iterator[tuple[str, Any]]:
        """Yield the keys that begin with `prefix`, with their values, a page at a time; unreadable rows are left out."""
        last = prefix
        while page := self._read(partial(Database.rows_from, prefix=prefix, most=_PAGE_ROWS, last=last)):
            for key, value in page:
                with contextlib.suppress(ValueError, RecursionError):
                    yield key, json.loads(value)
            last = page[-1][0]

    def _walk(self, last: str) -> Iterator[str]:
        # The walk of diskcache reads all earlier pages again for each page: many minutes for a million keys.
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

    # ---- the database, which may fail or be replaced at any time

    def _failed(self, event: str, error: Exception) -> None:
        # Rows can be read although a write has not got its turn, as beside a long purge.
        if event == "index_read_failed" or not databases.is_passing(error):
            self.failures += 1
        log.warning(event, path=databases.path_of(self._base, self._number), cause=str(error))
        if not databases.is_passing(error) and not databases.is_full(error):
            # Opening may take long, so it is left to a writer, which runs in a thread.
            self._error = error

    def _current(self) -> Database | None:
        """Return the database to read from; a successor that another process has created replaces it soon."""
        if time.monotonic() >= self._successor_at:
            self._successor_at = time.monotonic() + _SUCCESSOR_INTERVAL_S
            if os.path.isdir(databases.path_of(self._base, self._number + 1)) and not self._opening.locked():
                # Another process may lock it for seconds, and the reader may be the event loop.
                opening = threading.Thread(target=self._open, name="open-index", daemon=True)
                opening.start()
                opening.join(_OPEN_WAIT_S)
        if self._database is None:
            self.failures += 1
        return self._database

    def _writable(self) -> Database | None:
        """Return the database to write to, opened again if it has failed."""
        if (self._error is not None or self._database is None) and time.monotonic() >= self._retry_at:
            self._open()
        return self._current()

    def _open(self) -> None:
        if not self._opening.acquire(blocking=False):
            return
        try:
            error, self._error = self._error, None
            if error is not None and databases.is_damage(error):
                databases.supersede(self._base, self._number, str(error))
            opened = databases.open_newest(self._base)
            self._database, self._number = opened.database, opened.number
            self._retry_at = time.monotonic() + _REOPEN_INTERVAL_S
        except Unavailable as error:
            # The old one may still be readable: only a database that opens replaces it.
            self._retry_at = time.monotonic() + _UNAVAILABLE_INTERVAL_S
            self._log_unavailable(str(error))
        finally:
            self._opening.release()

    def _log_unavailable(self, cause: str) -> None:
        """Log the cause, but not for each attempt."""
        if time.monotonic() < self._log_at:
            return
        self._log_at = time.monotonic() + _LOG_INTERVAL_S
        consequence = "what it knows is not known for now" if self._database is None else "it is read on, and not written"
        log.error("index_unavailable", path=self._base, cause=cause, consequence=consequence)
