"""The popularity of a tag: its pulls, of which older ones count less."""

from dataclasses import dataclass
from typing import Final

# After this time a pull counts half as much.
_HALF_LIFE_S: Final = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Pulls:
    """The pulls of a tag so far.

    Attributes:
        last: seconds since the epoch.
        weight: their number at `last`, older ones counting less.
    """

    last: float
    weight: float

    def at(self, now: float) -> float:
        """The weight at `now`."""
        # A clock that was set back makes nothing more popular.
        return float(self.weight * 0.5 ** (max(0.0, now - self.last) / _HALF_LIFE_S))

    def plus(self, count: int, now: float) -> "Pulls":
        """These and `count` more pulls, the last of them at `now`."""
        return Pulls(max(self.last, now), self.at(now) + count)


NONE: Final = Pulls(0.0, 0.0)
