"""Tables of small facts: text under text, shared by processes. The only module that knows diskcache.

A table is a cache of facts, never the truth: a read that fails is a fact not known, a write that fails is a fact to be learned
again, and a table that cannot be opened is set aside and started anew.

Values are JSON text. diskcache's own way of storing objects, pickle, is neither written nor read (CVE-2025-69872).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sqlite3
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import diskcache
import structlog

log = structlog.get_logger(__name__)

T = TypeVar("T")

# Seconds that a process waits for another one's write. Facts are not worth more.
_BUSY = 2.0
# Each thread has a connection to each table, and each of them keeps so many pages of 4 KiB; the kernel keeps them for all.
_CACHED_PAGES = 256
# Text sorts before everything that does not belong here but numbers, which come before "".
_PAGE = "SELECT key FROM Cache WHERE key > ? AND raw = 1 AND typeof(key) = 'text' ORDER BY key LIMIT 250"
_ROWS = """SELECT key, value FROM Cache WHERE key >= ? AND key < ? AND mode = ? AND typeof(value) = 'text'
    AND (expire_time IS NULL OR expire_time > ?) ORDER BY key LIMIT ?"""
_KEYS = "SELECT key FROM Cache WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
# A damaged table is opened again at most this often, in seconds.
_MEND_EVERY = 10.0
_FAILURES = (sqlite3.Error, diskcache.Timeout, OSError, ValueError, TypeError, KeyError, AttributeError)


class _JsonDisk(diskcache.Disk):  # type: ignore[misc]
    """Stores text under text, and nothing else."""

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


class _Database(diskcache.Cache):  # type: ignore[misc]
    def keys_from(self, prefix: str, most: int) -> list[str]:
        """Every key that begins with `prefix`, by way of the index over keys; at most `most`, -1 for all."""
        rows = self._sql(_KEYS, (prefix, _after(prefix), most)).fetchall()
        return [key for (key,) in rows]

    def rows_from(self, prefix: str, most: int) -> list[tuple[str, str]]:
        """Every key that begins with `prefix`, with its value as it is stored; at most `most`, -1 for all."""
        values = (prefix, _after(prefix), diskcache.core.MODE_TEXT, time.time(), most)
        rows: list[tuple[str, str]] = self._sql(_ROWS, values).fetchall()
        return rows


def _after(prefix: str) -> str:
    """The first text that sorts after everything that begins with `prefix`."""
    return prefix[:-1] + chr(ord(prefix[-1]) + 1)


class Table:
    """One table, in a directory of its own. Reads cost microseconds; writes belong in a thread."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._cache = self._open()
        self._opened = time.monotonic()

    def close(self) -> None:
        """Let go of the database."""
        self._cache.close()

    def get(self, key: str) -> Any:
        """The value under a key, or None."""
        try:
            return self._cache.get(key)
        except _FAILURES as error:
            log.warning("index_read_failed", cause=str(error))
            self._mend(error)
            return None

    def set(self, key: str, value: Any, seconds: float | None = None) -> None:
        """Keep a value, for so many seconds if that is said."""
        try:
            self._cache.set(key, value, expire=seconds)
        except _FAILURES as error:
            log.warning("index_write_failed", cause=str(error))
            self._mend(error)

    def change(self, work: Callable[[], T]) -> T | None:
        """Do several reads and writes in one step, between which no other process writes; None if the table cannot be had."""
        try:
            with self._cache.transact():
                return work()
        except _FAILURES as error:
            log.warning("index_write_failed", cause=str(error))
            self._mend(error)
            return None

    def delete(self, key: str) -> None:
        """Forget a key."""
        try:
            self._cache.delete(key)
        except _FAILURES as error:
            log.warning("index_write_failed", cause=str(error))

    def set_many(self, rows: Iterable[tuple[str, Any]]) -> None:
        """Keep several values, all of them or none."""
        try:
            with self._cache.transact():
                for key, value in rows:
                    self._cache.set(key, value)
        except _FAILURES as error:
            log.warning("index_write_failed", cause=str(error))
            self._mend(error)

    def delete_many(self, keys: Iterable[str]) -> None:
        """Forget several keys."""
        try:
            with self._cache.transact():
                for key in keys:
                    self._cache.delete(key)
        except _FAILURES as error:
            log.warning("index_write_failed", cause=str(error))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Every key that begins with `prefix`, in order and a page at a time, those that came or went meanwhile perhaps not."""
        try:
            yield from itertools.takewhile(lambda key: key.startswith(prefix), self._walk(prefix))
        except _FAILURES as error:
            log.warning("index_read_failed", cause=str(error))

    def keys_from(self, prefix: str, most: int = -1) -> list[str]:
        """Every key that begins with `prefix`, in order; at most `most`, -1 for all."""
        try:
            found: list[str] = self._cache.keys_from(prefix, most)
        except _FAILURES as error:
            log.warning("index_read_failed", cause=str(error))
            return []
        return found

    def items_from(self, prefix: str, most: int = -1) -> Iterator[tuple[str, Any]]:
        """Every key that begins with `prefix`, with its value, read at once; an unreadable one hides no other.

        Args:
            most: so many at most, -1 for all.
        """
        try:
            rows = self._cache.rows_from(prefix, most)
        except _FAILURES as error:
            log.warning("index_read_failed", cause=str(error))
            self._mend(error)
            return
        for key, value in rows:
            with contextlib.suppress(ValueError, RecursionError):
                yield key, json.loads(value)

    def items(self) -> Iterator[tuple[str, Any]]:
        """Every key with its value; an unreadable one hides no other."""
        for key in self.keys():
            value = self.get(key)
            if value is not None:
                yield key, value

    def _walk(self, last: str) -> Iterator[str]:
        # diskcache's own walk reads every page's predecessors again, which for a million keys takes many minutes.
        path = urllib.parse.quote(os.path.abspath(f"{self._directory}/{diskcache.core.DBNAME}"))
        with contextlib.closing(sqlite3.connect(f"file:{path}?mode=rw", timeout=_BUSY, uri=True)) as database:
            while page := database.execute(_PAGE, (last,)).fetchall():
                for (last,) in page:
                    yield last

    def _mend(self, error: Exception) -> None:
        """Open the table again if its database has been damaged in use: set aside, it is learned anew."""
        damaged = isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError)
        if damaged and time.monotonic() - self._opened > _MEND_EVERY:
            self._opened = time.monotonic()
            self._cache = self._open()

    def _open(self) -> Any:
        try:
            return self._connect()
        except _FAILURES as error:
            aside = f"{self._directory}.damaged-{time.time_ns()}"
            log.warning("index_set_aside", path=aside, cause=str(error))
            os.rename(self._directory, aside)
            return self._connect()

    def _connect(self) -> Any:
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        cache = _Database(
            self._directory,
            timeout=_BUSY,
            disk=_JsonDisk,
            eviction_policy="none",
            size_limit=1 << 62,
            statistics=0,
            sqlite_mmap_size=0,
            sqlite_cache_size=_CACHED_PAGES,
        )
        cache.get("probe")
        return cache
