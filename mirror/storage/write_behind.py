"""Small content on its way to the disk: no answer waits for a slow one, and whoever asks meanwhile gets it from memory."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from mirror.aio import in_thread
from mirror.core.digest import Digest
from mirror.errors import StorageError
from mirror.storage.blobs import BlobFiles
from mirror.storage.threads import ThreadPools
from mirror.throttled_log import ThrottledLog

log = structlog.get_logger(__name__)

# How long an answer waits until its content is durable. Usually that takes some milliseconds.
_TIMEOUT_S = 0.25
# What may wait for the disk in all.
_MAX_BYTES = 64 << 20


class WriteBehind:
    """Stores small blobs that were verified."""

    def __init__(self, files: BlobFiles, threads: ThreadPools) -> None:
        self._files = files
        self._threads = threads
        self._waiting: dict[Digest, tuple[bytes, asyncio.Task[None]]] = {}
        self._log = ThrottledLog(log)

    def get(self, digest: Digest) -> bytes | None:
        """Content that is not on the disk yet."""
        entry = self._waiting.get(digest)
        return None if entry is None else entry[0]

    async def put(self, digest: Digest, data: bytes, make_room: Callable[[int], Awaitable[None]]) -> None:
        """Store a blob, after an attempt to make room if there is none; returns when it is durable, or when that takes long.

        It is stored although whoever waits is cancelled.

        Raises:
            StorageError: it cannot be stored, as far as that is known by then; `busy` if too much waits for the disk already.
        """
        if digest not in self._waiting:
            if sum(len(waiting) for waiting, _ in self._waiting.values()) + len(data) > _MAX_BYTES:
                raise StorageError(f"storing {digest}: the disk is too slow for what has come before", "busy")
            task = asyncio.get_running_loop().create_task(self._write(digest, data, make_room))
            self._waiting[digest] = data, task
            task.add_done_callback(lambda done: self._written(digest, done))
        task = self._waiting[digest][1]
        done, _ = await asyncio.wait([task], timeout=_TIMEOUT_S)
        if done:
            task.result()

    async def close(self) -> None:
        """Leave what has not been begun; what has is waited for with the threads."""
        tasks = [task for _, task in self._waiting.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, digest: Digest, data: bytes, make_room: Callable[[int], Awaitable[None]]) -> None:
        try:
            await in_thread(self._threads.put, self._files.put, digest, data)
        except StorageError as error:
            if error.reason != "full":
                raise
            await make_room(len(data))
            await in_thread(self._threads.put, self._files.put, digest, data)

    def _written(self, digest: Digest, task: asyncio.Task[None]) -> None:
        self._waiting.pop(digest, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Whoever still waits says so, too; nobody may.
            self._log.tell("info", "not_stored", digest=str(digest), cause=str(error))
