"""The last answer to each reference that was pulled of late, for people who ask what happened."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mirror.core.bounded_cache import BoundedCache
from mirror.core.names import Reference, Repository
from mirror.core.outcome import Outcome

_MAX_ENTRIES: Final = 10_000


@dataclass(frozen=True, slots=True)
class LastAnswer:
    """An answer for a manifest.

    Attributes:
        outcome: None for an error.
        when: seconds since the epoch.
        cause: the error, or why upstream could not be asked; None for an ordinary answer.
    """

    outcome: Outcome | None
    when: float
    cause: str | None = None


class LastAnswers:
    """The last answers of this process that were not a HIT from memory. Use it from the event loop's thread only."""

    def __init__(self) -> None:
        self._answers: BoundedCache[tuple[Repository, Reference], LastAnswer] = BoundedCache(_MAX_ENTRIES)

    def note(self, repository: Repository, reference: Reference, answer: LastAnswer) -> None:
        """Note an answer."""
        self._answers.put((repository, reference), answer)

    def get(self, repository: Repository, reference: Reference) -> LastAnswer | None:
        """Return the last answer; None if there was none of late."""
        return self._answers.get((repository, reference))
