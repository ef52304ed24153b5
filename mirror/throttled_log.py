"""Logging of events that clients or upstreams cause: lines are bounded per reason, and suppressed ones are counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# A reason may log this many lines at once, and then one per interval.
BURST = 10
INTERVAL_S = 1.0


@dataclass(slots=True)
class _Allowance:
    left: float
    at: float
    left_out: int = 0


class Throttle:
    """A token bucket for each reason.

    Args:
        burst: the size of a bucket.
        interval: seconds until a token is added.
        clock: seconds.
    """

    def __init__(self, burst: int, interval: float, clock: Callable[[], float]) -> None:
        self._burst = burst
        self._interval = interval
        self._clock = clock
        self._allowances: dict[str, _Allowance] = {}

    def take(self, reason: str) -> int | None:
        """Take a token; returns the number of failed attempts since the last success, or None if there is no token.

        Args:
            reason: one of a bounded number of words.
        """
        now = self._clock()
        allowance = self._allowances.get(reason)
        if allowance is None:
            allowance = self._allowances[reason] = _Allowance(self._burst, now)
        allowance.left = min(self._burst, allowance.left + max(0.0, now - allowance.at) / self._interval)
        allowance.at = now
        if allowance.left < 1:
            allowance.left_out += 1
            return None
        allowance.left -= 1
        left_out, allowance.left_out = allowance.left_out, 0
        return left_out


class ThrottledLog:
    """Logs events, of each reason a burst and then one per interval. `left_out` is the number of lines suppressed before a line.

    Args:
        log: a structlog logger.
    """

    def __init__(
        self, log: Any, clock: Callable[[], float] = time.monotonic, *, burst: int = BURST, interval: float = INTERVAL_S
    ) -> None:
        self._log = log
        self._throttle = Throttle(burst, interval, clock)

    def log(self, level: str, event: str, reason: str = "", /, **fields: object) -> None:
        """Log an event unless its reason is exhausted.

        Args:
            level: debug, info, warning or error.
            reason: bounds events of one name separately; one of a bounded number of words.
        """
        left_out = self._throttle.take(f"{event} {reason}")
        if left_out is None:
            return
        more = {"left_out": left_out} if left_out else {}
        getattr(self._log, level)(event, **fields, **more)
