"""What the mirrors that share a bucket know of its objects: their uses, and who may write or delete one now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Protocol

from mirror.core.digest import Digest


class Claim(Enum):
    """The answer to a process that wants to upload an object."""

    MINE = auto()
    """Nobody else writes or deletes it until `release`."""
    WAIT = auto()
    """Somebody else does."""
    STORED = auto()
    """The bucket has it."""


class ObjectFacts(Protocol):
    """Facts about objects. They only save work: what they do not know is asked of the bucket.

    `LocalFacts` is for a mirror by itself, `mirror.cluster.objects.SharedFacts` for the nodes of a cluster. Times are seconds
    since the epoch on this host's clock. No method but `uses` raises an error.
    """

    async def note_uses(self, uses: Mapping[Digest, float]) -> None:
        """Record when objects were used; an earlier use than the recorded one changes nothing."""

    async def uses(self, digests: Sequence[Digest]) -> list[float]:
        """Return when each object was used last; 0 if that is not known. Raises MirrorError if the facts cannot be read."""

    async def promise(self, digest: Digest) -> int | None:
        """Return the size of a blob that the bucket keeps for a while, and note a use; None if that is not known."""

    async def withdraw(self, digests: Sequence[Digest]) -> None:
        """Promise these objects no more, until they are found or written again."""

    async def note_present(self, digest: Digest, size: int) -> None:
        """Record that the bucket has an object."""

    def is_follower(self, digest: Digest) -> bool:
        """Whether another node sends a blob to this one now, and uploads it."""

    async def claim(self, digest: Digest, size: int) -> Claim:
        """Claim an object of `size` bytes for its upload, and note a use."""

    async def condemn(self, digest: Digest, since: float) -> bool:
        """Claim an object for its deletion; False if it was used after `since`, or somebody else has claimed it."""

    async def release(self, digest: Digest, size: int | None) -> None:
        """End a claim.

        Args:
            size: of the object that the bucket has now; None if it has none.
        """

    async def forget(self, digest: Digest) -> None:
        """Drop the uses of an object that is gone."""

    async def share_total(self, size: int) -> None:
        """Record the bytes of all objects."""

    async def total(self) -> int | None:
        """Return the bytes of all objects, as somebody else has counted them; None if nobody has of late."""
