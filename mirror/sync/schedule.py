"""When the resync is due, and what it goes on with. Times are seconds since the epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

# Many mirrors that were started together shall not ask upstream together: by so much of the interval a run may come sooner.
# Never later, so that within one interval a tag that has moved is found.
_SOONER: Final = 0.2
# Without an interval, what a run has left is tried again after so long.
_LEFT: Final = 900.0


@dataclass(frozen=True, slots=True)
class Schedule:
    """Where the resync stands.

    Attributes:
        round: when the round began of which the last run was a part.
        began: when the last run began.
        next: when another one may begin.
        unfinished: whether the round has not come to its end.
        fingerprint: of the images that were configured.
    """

    round: float
    began: float
    next: float
    unfinished: bool
    fingerprint: str

    @classmethod
    def read(cls, row: dict[str, Any]) -> Schedule | None:
        """From the ledger; None for what is none."""
        try:
            began, last, following = (float(row[key]) for key in ("round", "began", "next"))
            return cls(began, last, following, bool(row["unfinished"]), str(row["fingerprint"]))
        except (KeyError, TypeError, ValueError):
            return None

    def row(self) -> dict[str, Any]:
        """For the ledger."""
        return asdict(self)

    def waits(self, interval: float, now: float) -> bool:
        """Whether there is nothing to do yet while the configured images stay the same."""
        if interval <= 0 and not self.unfinished:
            return True
        # A run in the future was before the clock was set back, and nothing says how long ago. And an interval may be cut short.
        return self.began <= now < min(self.next, self.began + (interval or _LEFT))


def after(began: float, interval: float, chance: float) -> float:
    """When the run after one that has begun is due.

    Args:
        chance: from 0 up to 1.
    """
    return began + (interval or _LEFT) * (1 - _SOONER * chance)


def round_to_run(last: Schedule | None, fingerprint: str, interval: float, now: float, *, images: bool) -> float | None:
    """The beginning of the round that a run should be a part of now; None if there is nothing to do yet.

    Args:
        interval: seconds, 0 for no runs but when other images are configured.
        images: whether any are configured, or were when that was looked at last.
    """
    if last is None or last.fingerprint != fingerprint:
        if interval <= 0 and not images:
            return None
    elif last.waits(interval, now):
        return None
    return last.round if last is not None and last.unfinished and last.round <= now else now
