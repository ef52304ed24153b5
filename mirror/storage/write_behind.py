"""Small content on its way to the disk: no answer waits for a slow disk, and until then it is served from memory."""

from __future__ import annotations

import asyncio
from functools import partial

import structlog

from mirror.aio import in_thread
from mirror.core.digest import Digest
from mirror.errors import StorageError
from mirror.storage.blobs import BlobFiles
from mirror.storage.space_quota import MakeRoom, make_room_after
from mirror.storage.threads import ThreadPools
from mirror.throttled_log import ThrottledLog

log = structlog.get_logger(__name__)

# The longest time that an answer waits for its content to become durable; usually some milliseconds.
_TIMEOUT_S = 0.25
# All content that waits for the disk.
_MAX_BYTES = 64 << 20


class WriteBehind:
    """Stores small verified blobs."""

    def __init__(self, files: BlobFiles, threads: ThreadPools) -> None:
        self._files = files
        self._threads = threads
        self._waiting: dict[Digest, tuple[bytes, asyncio.Task[None]]] = {}
        self._log = ThrottledLog(log)

    def get(self, digest: Digest) -> bytes | None:
        """Return content that is not on the disk yet, or None."""
        entry = self._waiting.get(digest)
        return None if entry is None else entry[0]

    async def put(self, digest: Digest, data: bytes, owner: str, make_room: MakeRoom) -> None:
        """Store a blob, and make room if no space is left; returns when it is durable, or after `_TIMEOUT_S`.

        A cancelled caller does not stop the write.

        Args:
            owner: the registry that the blob counts for.

        Raises:
            StorageError: it cannot be stored, if that is known in time; `busy` if too much content waits for the disk.
        """
        if digest not in self._waiting:
            if sum(len(waiting) for waiting, _ in self._waiting.values()) + len(data) > _MAX_BYTES:
                raise StorageError(f"storing {digest}: the disk is too slow for what has come before", "busy")
            task = asyncio.get_running_loop().create_task(self._write(digest, data, owner, make_room))
            self._waiting[digest] = data, task
            task.add_done_callback(lambda done: self._written(digest, done))
        task = self._waiting[digest][1]
        done, _ = await asyncio.wait([task], timeout=_TIMEOUT_S)
        if done:
            task.result()

    async def close(self) -> None:
        """Cancel writes that have not started; the shutdown of the threads waits for the others."""
        tasks = [task for _, task in self._waiting.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _write(self, digest: Digest, data: bytes, owner: str, make_room: MakeRoom) -> None:
        store = partial(self._files.put, digest, data, owner)
        try:
            await in_thread(self._threads.put, store)
        except StorageError as error:
            await make_room_after(error, len(data), owner, make_room)
            await in_thread(self._threads.put, store)

    def _written(self, digest: Digest, task: asyncio.Task[None]) -> None:
        self._waiting.pop(digest, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Perhaps no caller is left that would see the error.
            self._log.log("info", "not_stored", digest=str(digest), cause=str(error))
