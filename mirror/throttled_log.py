"""A log that whoever causes its lines cannot fill: equal ones are bounded per reason, and what was left out is counted."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# So many lines of one reason may come at once, and then one in so many seconds.
BURST = 10
INTERVAL_S = 1.0


@dataclass(slots=True)
class _Allowance:
    left: float
    at: float
    left_out: int = 0


class Throttle:
    """Decides which of many equal things are told.

    Args:
        burst: of one reason, at once.
        interval: seconds until another one is told.
        clock: seconds.
    """

    def __init__(self, burst: int, interval: float, clock: Callable[[], float]) -> None:
        self._burst = burst
        self._interval = interval
        self._clock = clock
        self._allowances: dict[str, _Allowance] = {}

    def take(self, reason: str) -> int | None:
        """How many were left out since the last one that was told; None if this one is left out, too.

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
    """Logs events that clients or upstreams cause: of each reason some at once, ten as a rule, and then one a second.

    `left_out` tells how many were not logged before a line.

    Args:
        log: a logger of structlog's.
    """

    def __init__(
        self, log: Any, clock: Callable[[], float] = time.monotonic, *, burst: int = BURST, interval: float = INTERVAL_S
    ) -> None:
        self._log = log
        self._throttle = Throttle(burst, interval, clock)

    def tell(self, level: str, event: str, reason: str = "", /, **fields: object) -> None:
        """Log an event unless too many equal ones came before it.

        Args:
            level: debug, info, warning or error.
            reason: tells events of one name apart that are to be bounded by themselves; one of a bounded number of words.
        """
        left_out = self._throttle.take(f"{event} {reason}")
        if left_out is None:
            return
        more = {"left_out": left_out} if left_out else {}
        getattr(self._log, level)(event, **fields, **more)
