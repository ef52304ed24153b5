"""Recent failures by key, with a pause after two in a row."""

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from mirror.core.bounded_cache import BoundedCache

E = TypeVar("E")

_MAX_FAILURES: Final = 4096
_MAX_DOUBLINGS: Final = 62


@dataclass(slots=True)
class _Failure(Generic[E]):
    cause: E
    count: int
    until: float


class Failures(Generic[E]):
    """Recent failures. Times are seconds on a monotonic clock.

    After one failure the next request is sent at once. From the second in a row on there is a pause, which doubles.

    Args:
        first: seconds of the first pause.
        longest: seconds of the longest pause; after another such time without a failure the count begins anew.
    """

    def __init__(self, first: float = 1.0, longest: float = 10.0) -> None:
        self._first = first
        self._longest = longest
        self._failures: BoundedCache[Hashable, _Failure[E]] = BoundedCache(_MAX_FAILURES)

    def __len__(self) -> int:
        return len(self._failures)

    def lately(self, key: Hashable, now: float) -> tuple[E, float] | None:
        """The cause of the last failure and the seconds left of its pause; None without a pause."""
        failure = self._failures.get(key)
        return (failure.cause, failure.until - now) if failure is not None and now < failure.until else None

    def note(self, key: Hashable, cause: E, now: float) -> None:
        """Note a failure."""
        known = self._failures.pop(key)
        count = 1 if known is None or now > known.until + self._longest else known.count + 1
        pause = 0.0 if count == 1 else min(self._longest, self._first * 2.0 ** min(count - 2, _MAX_DOUBLINGS))
        self._failures.put(key, _Failure(cause, count, now + pause))

    def forget(self, key: Hashable) -> None:
        """Note a success."""
        self._failures.pop(key)
