"""The store: files, index, generation, and the threads that work on them. Outlives reloads."""

from __future__ import annotations

import os
import sqlite3
import uuid

from mirror.config.sections import Storage
from mirror.errors import ConfigurationError
from mirror.storage.blobs import BlobFiles
from mirror.storage.coordination import KeyedLock
from mirror.storage.generation import Generation
from mirror.storage.index import Index
from mirror.storage.job_store import JobStore
from mirror.storage.layout import Layout
from mirror.storage.space_quota import SpaceQuota
from mirror.storage.threads import ThreadPools
from mirror.storage.write_behind import WriteBehind


class Store:
    """An open store.

    Raises:
        ConfigurationError: from the constructor, if the directory cannot be used.
    """

    def __init__(self, config: Storage) -> None:
        self.layout = Layout(str(config.path.resolve()))
        self.layout.prepare()
        try:
            self._open(config)
        except (OSError, sqlite3.Error) as error:
            cause = getattr(error, "strerror", None) or error
            raise ConfigurationError([f"storage.path: the store {self.layout.root!r} cannot be opened: {cause}"]) from error
        self.threads = ThreadPools.start()
        self.small = WriteBehind(self.files, self.threads)

    def _open(self, config: Storage) -> None:
        self.quota = SpaceQuota(self.layout, config.max_size, config.min_free)
        self.files = BlobFiles(self.layout, self.quota)
        self.index = Index(self.layout.index)
        self.jobs = JobStore(self.layout.index)
        self.turns = KeyedLock(self.layout.manifest_turns)
        self.generation = Generation(self.layout.generation)

    def is_writable(self) -> bool:
        """Whether a file can be created now. Blocks."""
        probe = f"{self.layout.temporary}/probe-{uuid.uuid4().hex}"
        try:
            os.close(os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            os.unlink(probe)
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close everything; waits for running work."""
        self.threads.shutdown()
        self.index.close()
        self.jobs.close()
        self.generation.close()
