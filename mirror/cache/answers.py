"""What the cache answers: a manifest, a blob or a list, with its outcome."""

from __future__ import annotations

from dataclasses import dataclass

from mirror.core.digest import Digest
from mirror.core.outcome import Outcome
from mirror.core.tag_moves import Keep
from mirror.download.reader import Body


@dataclass(frozen=True, slots=True)
class ManifestAnswer:
    """A manifest, unchanged.

    Attributes:
        size: bytes.
        raw: its bytes; None if a HEAD needs only the other fields, and only those are known.
        reason: why upstream could not be asked; of a STALE answer only.
        held_back: what the tag names upstream, if that is held back.
    """

    digest: Digest
    media_type: str
    size: int
    raw: bytes | None
    outcome: Outcome
    reason: str | None = None
    held_back: Keep | None = None


@dataclass(frozen=True, slots=True)
class BlobAnswer:
    """A blob that may be read.

    Attributes:
        size: bytes.
        body: the receiver closes it.
    """

    digest: Digest
    size: int
    body: Body
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class ListAnswer:
    """A list of tags or referrers.

    Attributes:
        headers: the type and, if there is a next page, a Link to it at this mirror.
        reason: why upstream could not be asked; of a STALE answer only.
    """

    body: bytes
    headers: dict[str, str]
    outcome: Outcome
    reason: str | None = None
