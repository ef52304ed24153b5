"""Facts about the objects of a bucket that one mirror keeps for itself, in the index of its store."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import partial

from mirror.aio import in_thread
from mirror.core.digest import Digest
from mirror.objects.facts import Claim
from mirror.storage.table import Table

# Older uses matter no more.
_USED_S = 180 * 86400.0
# Somebody else may delete objects from the bucket.
_STORED_S = 86400.0


class LocalFacts:
    """See `ObjectFacts`. The processes of a store share the rows; one of them claims.

    stored|DIGEST   the bytes of an object in the bucket
    used|DIGEST     when it was used last
    """

    def __init__(self, directory: str, threads: Executor) -> None:
        self._table = Table(f"{directory}/objects-used")
        self._threads = threads
        self._claimed: set[Digest] = set()

    async def note_uses(self, uses: Mapping[Digest, float]) -> None:
        """See `ObjectFacts.note_uses`."""
        await in_thread(self._threads, self._note_uses, dict(uses))

    async def uses(self, digests: Sequence[Digest]) -> list[float]:
        """See `ObjectFacts.uses`."""
        return await in_thread(self._threads, lambda: [self._used(digest) for digest in digests])

    async def promise(self, digest: Digest) -> int | None:
        """See `ObjectFacts.promise`."""
        return await in_thread(self._threads, self._table.change, partial(self._promise, digest))

    async def withdraw(self, digests: Sequence[Digest]) -> None:
        """See `ObjectFacts.withdraw`."""
        await in_thread(self._threads, self._table.delete_many, [f"stored|{digest}" for digest in digests])

    async def note_present(self, digest: Digest, size: int) -> None:
        """See `ObjectFacts.note_present`."""
        await in_thread(self._threads, self._table.set, f"stored|{digest}", size, _STORED_S)

    def is_follower(self, digest: Digest) -> bool:
        """No: there is no other node."""
        return False

    async def claim(self, digest: Digest, size: int) -> Claim:
        """See `ObjectFacts.claim`."""
        if digest in self._claimed:
            return Claim.WAIT
        self._claimed.add(digest)
        await self.note_uses({digest: time.time()})
        if await in_thread(self._threads, self._table.get, f"stored|{digest}") != size:
            return Claim.MINE
        self._claimed.discard(digest)
        return Claim.STORED

    async def condemn(self, digest: Digest, since: float) -> bool:
        """See `ObjectFacts.condemn`."""
        if digest in self._claimed:
            return False
        self._claimed.add(digest)
        if await in_thread(self._threads, self._table.change, partial(self._condemn, digest, since)):
            return True
        self._claimed.discard(digest)
        return False

    async def release(self, digest: Digest, size: int | None) -> None:
        """See `ObjectFacts.release`."""
        self._claimed.discard(digest)
        if size is not None:
            await self.note_present(digest, size)

    async def forget(self, digest: Digest) -> None:
        """See `ObjectFacts.forget`."""
        await in_thread(self._threads, self._table.delete, f"used|{digest}")

    async def share_total(self, size: int) -> None:
        """Nothing: the process that counts publishes its metrics for the others."""

    async def total(self) -> int | None:
        """None: nobody else counts."""
        return None

    def _used(self, digest: Digest) -> float:
        when = self._table.get(f"used|{digest}")
        return when if isinstance(when, float) else 0.0

    def _note_uses(self, uses: Mapping[Digest, float]) -> None:
        rows = [(f"used|{digest}", when, None) for digest, when in uses.items() if when > self._used(digest)]
        if rows:
            self._table.set_many(rows, _USED_S)

    def _promise(self, digest: Digest) -> int | None:
        size = self._table.get(f"stored|{digest}")
        if not isinstance(size, int):
            return None
        self._table.set(f"used|{digest}", time.time(), _USED_S)
        return size

    def _condemn(self, digest: Digest, since: float) -> bool:
        if self._used(digest) > since:
            return False
        self._table.delete(f"stored|{digest}")
        return True
