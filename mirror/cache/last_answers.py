"""The last answer to each recently pulled reference, and the last failures, for explanations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mirror.core.bounded_cache import BoundedCache
from mirror.core.digest import Digest
from mirror.core.names import Reference, Repository
from mirror.core.outcome import Outcome

_MAX_ENTRIES: Final = 10_000
_MAX_TROUBLES: Final = 20


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


@dataclass(frozen=True, slots=True)
class Trouble:
    """Failures of pulls of one image.

    Attributes:
        answer: the last one.
        times: how many there were in a row with the same outcome.
    """

    image: str
    answer: LastAnswer
    times: int = 1


class LastAnswers:
    """The last answers of this process that were not a HIT from memory. Change it on the event loop's thread only."""

    def __init__(self) -> None:
        self._answers: BoundedCache[tuple[Repository, Reference], LastAnswer] = BoundedCache(_MAX_ENTRIES)
        # By image and outcome, the latest last.
        self._troubles: dict[tuple[str, Outcome | None], Trouble] = {}

    def note(self, repository: Repository, reference: Reference, answer: LastAnswer) -> None:
        """Note an answer."""
        self._answers.put((repository, reference), answer)

    def note_trouble(self, repository: Repository, reference: Reference, answer: LastAnswer) -> None:
        """Note an answer that people should hear of: an error, or a stale manifest."""
        key = (f"{repository}{'@' if isinstance(reference, Digest) else ':'}{reference}", answer.outcome)
        before = self._troubles.pop(key, None)
        self._troubles[key] = Trouble(key[0], answer, 1 if before is None else before.times + 1)
        if len(self._troubles) > _MAX_TROUBLES:
            del self._troubles[next(iter(self._troubles))]

    def troubles(self) -> list[Trouble]:
        """Return the last troubles, the latest first. May be called in any thread."""
        return list(self._troubles.copy().values())[::-1]

    def get(self, repository: Repository, reference: Reference) -> LastAnswer | None:
        """Return the last answer; None if there was none of late."""
        return self._answers.get((repository, reference))
