"""When the scheduled sync is due, and whether it continues an unfinished round. Times are seconds since the epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

# A run starts earlier by a random share of the interval, up to this one: mirrors that were started together do not ask
# upstream together. It never starts later: a tag that has moved is found within one interval.
_MAX_EARLIER: Final = 0.2
# Without an interval, an unfinished round continues after this time.
_CONTINUE_AFTER_S: Final = 900.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """The state of the scheduled sync.

    Attributes:
        round: when the round of the last run began.
        began: when the last run began.
        next: when the next run is due.
        unfinished: the round is not complete.
        fingerprint: of the configured images.
    """

    round: float
    began: float
    next: float
    unfinished: bool
    fingerprint: str

    @classmethod
    def read(cls, row: dict[str, Any]) -> Schedule | None:
        """Parse a row of the job store; None for an invalid one."""
        try:
            began, last, following = (float(row[key]) for key in ("round", "began", "next"))
            return cls(began, last, following, bool(row["unfinished"]), str(row["fingerprint"]))
        except (KeyError, TypeError, ValueError):
            return None

    def row(self) -> dict[str, Any]:
        """Return its row in the job store."""
        return asdict(self)

    def waits(self, interval: float, now: float) -> bool:
        """Whether no run is due yet if the configured images are the same."""
        if interval <= 0 and not self.unfinished:
            return True
        # A run in the future began before the clock was set back: it is due. The interval may have been made shorter.
        return self.began <= now < min(self.next, self.began + (interval or _CONTINUE_AFTER_S))


def after(began: float, interval: float, chance: float) -> float:
    """Return when the run after one that has begun is due.

    Args:
        chance: a random number from 0 up to 1.
    """
    return began + (interval or _CONTINUE_AFTER_S) * (1 - _MAX_EARLIER * chance)


def round_to_run(last: Schedule | None, fingerprint: str, interval: float, now: float, *, images: bool) -> float | None:
    """Return when the round of a run that is due began; None if no run is due.

    Args:
        interval: seconds; 0 for a run only when other images are configured.
        images: whether any are configured, or were at the last run.
    """
    if last is None or last.fingerprint != fingerprint:
        if interval <= 0 and not images:
            return None
    elif last.waits(interval, now):
        return None
    return last.round if last is not None and last.unfinished and last.round <= now else now
