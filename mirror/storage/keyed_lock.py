"""KeyedLock: lets the processes of a store do a thing one after the other, so that the later ones find it done."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

from mirror.core.digest import Digest
from mirror.storage.range_lock import Lock

# Another process needs as long as upstream does; who has waited so long does without. Seconds.
_PATIENCE = 5.0
_LOOK = 0.01
# Hexadecimal digits of a digest that choose the byte which is locked: two digests hardly ever share one.
_DIGITS = 15


class KeyedLock:
    """One file, of which each digest has a byte to lock; the kernel unlocks it when a process dies.

    Args:
        path: of the file, which is made if need be.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    @contextlib.asynccontextmanager
    async def turn(self, digest: Digest) -> AsyncIterator[None]:
        """Wait until nobody else has a turn with this digest, some seconds at most.

        Nothing depends on it but that work is saved.
        """
        async with contextlib.AsyncExitStack() as stack:
            # Without descriptors, or on a file system without such locks, everybody does the work.
            with contextlib.suppress(OSError):
                lock = stack.enter_context(contextlib.closing(self._lock()))
                await _take(lock, int(digest.encoded[:_DIGITS], 16))
            yield

    def _lock(self) -> Lock:
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            return Lock(descriptor)
        finally:
            os.close(descriptor)


async def _take(lock: Lock, byte: int) -> None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _PATIENCE
    while not lock.take(byte, 1) and loop.time() < deadline:  # noqa: ASYNC110 - the kernel has no event for a lock
        await asyncio.sleep(_LOOK)
