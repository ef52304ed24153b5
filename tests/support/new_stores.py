"""Stores for tests that need one, but are not about its creation: for a fraction of the hundreds of statements that this takes.

A test makes a mirror of its own, with an empty store of its own. diskcache creates and opens each of the databases by some
eighty statements, and each scan of the blobs is a process. Tests of stores, of scans and of processes do without this module.
"""

from __future__ import annotations

import functools
import os
import tempfile
import threading
from pathlib import Path
from typing import Any, Self
from unittest import mock

from mirror.config.sections import Storage
from mirror.maintenance import scan_process
from mirror.storage import database
from mirror.storage.store import Store


def open_store(config: Storage) -> Store:
    """Open a store; one that does not exist is a copy of one that was opened and closed before."""
    if config.path.exists():
        return Store(config)
    _empty_store().copy_to(config.path)
    with mock.patch.object(database, "_connect", _Unchanged.open):
        return Store(config)


class _EmptyStore:
    """The directories and files of a store that was opened and closed."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory, "store")
            Store(Storage(path=root)).close()
            paths = sorted(path.relative_to(root) for path in root.rglob("*"))
            self._directories = [path for path in paths if (root / path).is_dir()]
            # Each store has a number of its own.
            names = [path for path in paths if path not in self._directories and path.name != "generation"]
            self._files = [(path, (root / path).read_bytes()) for path in names]

    def copy_to(self, root: Path) -> None:
        """Create a store, with the modes that it has in production."""
        root.mkdir(0o700)
        for path in self._directories:
            os.mkdir(f"{root}/{path}", 0o700)
        for path, data in self._files:
            with open(os.open(f"{root}/{path}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
                file.write(data)


@functools.cache
def _empty_store() -> _EmptyStore:
    return _EmptyStore()


class _Unchanged(database.Database):
    """A database that has the tables and settings already: opened without the statements that would create them again."""

    @classmethod
    def open(cls, path: str) -> Self:
        made = cls.__new__(cls)
        made._directory, made._timeout = path, database._BUSY_TIMEOUT_S
        made._local, made._txn_id = threading.local(), None
        made._disk = database._JsonDisk(path)
        for name, value in made._sql("SELECT key, value FROM Settings").fetchall():
            setattr(made, name, value)
        ((made._page_size,),) = made._sql("PRAGMA page_size").fetchall()
        return made


class ScanInThread:
    """Stands in for the process of a scan (`subprocess.Popen`): the same walk, when its answer is asked for."""

    returncode = 0

    def __init__(self, argv: list[str], **_: Any) -> None:
        *_, self._root, self._most, self._mode, self._registry = argv

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def communicate(self, pins: bytes, timeout: float) -> tuple[bytes, bytes]:
        """The answer, and what was written as errors."""
        pinned = frozenset(pins.decode().split())
        only_pinned = self._mode == "only"
        return b"".join(scan_process.scan(self._root, int(self._most), pinned, self._registry, only_pinned=only_pinned)), b""
