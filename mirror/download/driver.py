"""Completes a blob in this process: fetches, verifies and commits it."""

from __future__ import annotations

import asyncio

from mirror.download.chunk_map import Fate
from mirror.download.fetcher import Fetcher
from mirror.download.partial import Partial
from mirror.download.services import DownloadServices
from mirror.download.states import Committed
from mirror.download.verifier import Verifier, rehash
from mirror.errors import DigestMismatch, FlushFailed, MirrorError, StorageError
from mirror.storage.blobs import BlobFiles


class Driver:
    """Completes the blob of a partial file whose driver lock this process has."""

    def __init__(self, partial: Partial, fetcher: Fetcher, services: DownloadServices) -> None:
        self._partial = partial
        self._fetcher = fetcher
        self._services = services

    async def run(self) -> Committed:
        """Return when the blob is held under its name.

        Raises:
            MirrorError: that has failed.
        """
        partial, services = self._partial, self._services
        held = services.files.open(partial.digest)
        if held is not None:
            partial.replace_by(held)
            await partial.in_thread(services.threads.write, partial.discard)
            return Committed(held.size, fetched=False)
        if not partial.is_new():
            await self._resume()
        await self._fetch()
        partial.publish(Fate.VERIFIED)
        partial.announce()
        await self._commit()
        assert partial.map.size is not None
        return Committed(partial.map.size, fetched=True)

    async def _resume(self) -> None:
        """Take up what an earlier ingest has left."""
        partial, services = self._partial, self._services
        await rehash(partial, services.threads.write)
        if await partial.in_thread(services.threads.write, partial.refresh):
            if partial.map.received():
                services.resumed("restart")
            partial.announce()

    async def _fetch(self) -> None:
        """Return when every byte has arrived and the digest has matched."""
        partial, threads = self._partial, self._services.threads
        verifier = Verifier(partial, threads.write)
        self._fetcher.write = verifier.write
        verification = asyncio.get_running_loop().create_task(verifier.run())
        try:
            await self._fetcher.run()
            await verification
        except MirrorError as error:
            fate = self._fate(error)
            if fate is not Fate.OPEN or not partial.map.received():
                await partial.in_thread(threads.write, partial.discard, fate)
            raise
        finally:
            verification.cancel()
            await asyncio.gather(verification, return_exceptions=True)

    async def _commit(self) -> None:
        partial, threads, files = self._partial, self._services.threads, self._services.files
        try:
            await partial.in_thread(threads.flush, _commit, files, partial)
        except FlushFailed:
            await partial.in_thread(threads.write, partial.discard, Fate.LOST)
            raise

    def _fate(self, error: MirrorError) -> Fate:
        """What becomes of bytes whose ingest failed: the next one uses them, unless they are in its way."""
        if isinstance(error, StorageError) and error.reason != "busy":
            # Bytes that do not fit are in the way of all others, and what the disk does not take may be wrong.
            return Fate.NO_ROOM if error.reason in ("full", "too_large") else Fate.LOST
        is_wrong = isinstance(error, DigestMismatch) or self._fetcher.is_contradicted
        return Fate.WRONG if is_wrong else Fate.OPEN


def _commit(files: BlobFiles, partial: Partial) -> None:
    files.commit(partial.path, partial.descriptor, partial.digest)
    # In the same thread, so that it is removed although the caller is cancelled.
    partial.remove_map()
