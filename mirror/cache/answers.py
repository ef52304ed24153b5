"""Answers of the use case."""

from __future__ import annotations

from dataclasses import dataclass

from mirror.core.digest import Digest
from mirror.core.outcome import Outcome


@dataclass(frozen=True, slots=True)
class ManifestAnswer:
    """A manifest to be served exactly as upstream has it.

    Attributes:
        size: bytes.
        raw: its bytes; None if only its headers were asked for and only they are known.
        reason: of a STALE answer: why upstream could not be asked.
    """

    digest: Digest
    media_type: str
    size: int
    raw: bytes | None
    outcome: Outcome
    reason: str | None = None
