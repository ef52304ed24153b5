"""How much a tag is asked for: pulls, of which older ones count less."""

from dataclasses import dataclass
from typing import Final

# A pull counts half as much after this time, in seconds.
_HALF_LIFE: Final = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Pulls:
    """The pulls of a tag so far.

    Attributes:
        last: seconds since the epoch.
        weight: how many they are worth at `last`.
    """

    last: float
    weight: float

    def at(self, now: float) -> float:
        """How many they are worth at `now`."""
        # A clock that was set back makes nothing more popular.
        return float(self.weight * 0.5 ** (max(0.0, now - self.last) / _HALF_LIFE))

    def plus(self, count: int, now: float) -> "Pulls":
        """With some more pulls, the last of them at `now`."""
        return Pulls(max(self.last, now), self.at(now) + count)


NONE: Final = Pulls(0.0, 0.0)
