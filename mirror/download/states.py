"""The states of one blob on its way into the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mirror.errors import MirrorError

# A whole body ends with this many bytes only after the digest has matched. One byte would be enough for correctness; a small blob
# is held back whole, so that its failure can still become an error response.
HELD_BACK_BYTES = 64 << 10


def unverified_end(size: int) -> int:
    """How far a whole body of `size` bytes may be sent before its digest has matched."""
    return size - min(size, HELD_BACK_BYTES)


@dataclass(frozen=True, slots=True)
class Connecting:
    """The size is not known yet."""

    name: ClassVar[str] = "CONNECTING"

    def limit(self, *, whole: bool) -> int:
        """No byte may be read."""
        return 0


@dataclass(frozen=True, slots=True)
class Receiving:
    """Bytes arrive, and may be read as they do.

    Attributes:
        size: bytes of the blob.
    """

    size: int
    name: ClassVar[str] = "FILLING"

    def limit(self, *, whole: bool) -> int:
        """The end of what may be read once it has arrived; a whole body waits for the digest."""
        return unverified_end(self.size) if whole else self.size


@dataclass(frozen=True, slots=True)
class Verified:
    """Every byte has arrived, and the digest has matched.

    Attributes:
        size: bytes of the blob.
    """

    size: int
    name: ClassVar[str] = "VERIFIED"

    def limit(self, *, whole: bool) -> int:
        """Every byte may be read."""
        return self.size


@dataclass(frozen=True, slots=True)
class Committed:
    """The blob is held under its name, or was.

    Attributes:
        size: bytes of the blob.
        fetched: whether this process fetched it; otherwise another one did.
    """

    size: int
    fetched: bool
    name: ClassVar[str] = "COMMITTED"

    def limit(self, *, whole: bool) -> int:
        """Every byte may be read."""
        return self.size


@dataclass(frozen=True, slots=True)
class Failed:
    """The ingest has ended without the blob.

    Attributes:
        readable_to: the end of the bytes that may still be read; 0 if they are wrong.
    """

    cause: MirrorError
    readable_to: int
    name: ClassVar[str] = "FAILED"

    def limit(self, *, whole: bool) -> int:
        """The end of what may be read of the bytes that have arrived."""
        return self.readable_to


State = Connecting | Receiving | Verified | Committed | Failed
