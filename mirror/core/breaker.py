"""A circuit breaker. Times are seconds on a monotonic clock."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

_MAX_DOUBLINGS: Final = 62
# After this time a failure is not in a row with those before it.
_ROW_S: Final = 60.0


class Admission(Enum):
    """Permission for one request. Its outcome is noted by `succeeded`, `failed` or `released`."""

    NORMAL = auto()
    TRIAL = auto()
    """The only request under way; it decides whether others are admitted."""


@dataclass(slots=True)
class Breaker:
    """Closed: every request is admitted. Open: none, for a pause. After the pause: one trial at a time, until one succeeds.

    Attributes:
        first: seconds of the first pause; each trial that fails doubles it.
        longest: seconds of the longest pause.
        threshold: failures in a row that open it, unless one is grave.
    """

    first: float = 1.0
    longest: float = 30.0
    threshold: int = 3
    _failures: int = 0
    _first_failure: float = 0.0
    _last_failure: float = 0.0
    _opened: int = 0
    _until: float = 0.0
    _on_trial: bool = False

    @property
    def is_closed(self) -> bool:
        """Whether every request is admitted."""
        return self._opened == 0

    def admits(self, now: float) -> bool:
        """Whether `admit` would admit a request."""
        return self.is_closed or (now >= self._until and not self._on_trial)

    def admit(self, now: float) -> Admission | None:
        """Admit a request; None if it is refused."""
        if self.is_closed:
            return Admission.NORMAL
        return self.reserve() if self.admits(now) else None

    def reserve(self) -> Admission:
        """Take the next trial, also before the pause is over."""
        self._on_trial = True
        return Admission.TRIAL

    @property
    def is_reserved(self) -> bool:
        """Whether a trial is under way, or reserved."""
        return self._on_trial

    def retry(self, now: float) -> None:
        """End the pause: the next request may be the trial."""
        self._until = min(self._until, now)
        self._on_trial = False

    @property
    def pauses(self) -> int:
        """How many pauses in a row it has begun."""
        return self._opened

    def take_over(self, pauses: int, until: float) -> None:
        """Go on from the pauses of another breaker for the same; `until` is the end of its last one. Nothing if it had none."""
        if pauses > 0:
            self._opened, self._until, self._on_trial = max(self._opened, pauses), max(self._until, until), False

    def wait(self, now: float) -> float:
        """Seconds until the next trial may begin."""
        return 0.0 if self.is_closed else max(0.0, self._until - now)

    def has_failed_for(self, now: float) -> float:
        """Seconds from the first to the last failure in a row; 0 if the last is not recent."""
        return self._last_failure - self._first_failure if self._failures and now - self._last_failure <= _ROW_S else 0.0

    def succeeded(self) -> None:
        """Note that a request was answered, whenever it was admitted."""
        self._failures = self._opened = 0
        self._on_trial = False

    def failed(self, now: float, admission: Admission, *, grave: bool = True, pause: float | None = None) -> bool:
        """Note a failure; True if it has opened the breaker, or opened it anew.

        A request that was admitted before the breaker opened changes nothing when it fails as well.

        Args:
            grave: opens it at once.
            pause: at least so many seconds instead of the doubled ones.
        """
        if not self._failures or now - self._last_failure > _ROW_S:
            self._first_failure = now
        self._last_failure = now
        if admission is Admission.NORMAL and not self.is_closed:
            return False
        self._failures += 1
        if admission is Admission.NORMAL and not grave and self._failures < self.threshold:
            return False
        self._opened += 1
        own = min(self.longest, self.first * 2.0 ** min(self._opened - 1, _MAX_DOUBLINGS))
        self._until = now + (own if pause is None else max(pause, self.first / 30))
        self._on_trial = False
        return True

    def released(self, admission: Admission) -> None:
        """Note that a request had no outcome: another one may be the trial."""
        if admission is Admission.TRIAL:
            self._on_trial = False
