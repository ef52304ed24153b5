"""Compares the clock of this machine with that of an upstream, by the Date of its responses (RFC 9110 section 6.6.1)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from mirror.core.http_date import parse_http_date

# A comparison is valid for so long: either clock may have been set since.
_LIFETIME_S = 300.0


class UpstreamTime:
    """The last comparison with one upstream."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._valid_until = 0.0
        self._skew: float | None = None

    def note(self, headers: Mapping[str, str]) -> None:
        """Compare. The Date of a cached response, which has an Age, is that of another time (RFC 9111 section 5.1)."""
        date = None if "Age" in headers else parse_http_date(headers.get("Date", ""))
        if date is not None:
            self._valid_until, self._skew = self._clock() + _LIFETIME_S, time.time() - date.timestamp()

    @property
    def skew(self) -> float | None:
        """Seconds by which this machine's clock is ahead; None if that is not known by now."""
        return self._skew if self._clock() < self._valid_until else None
