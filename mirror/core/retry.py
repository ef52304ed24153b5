"""How long to wait before a request is sent again."""

import re
from datetime import datetime
from typing import Final

from mirror.core.http_date import parse_http_date

_SECONDS: Final = re.compile(r"[0-9]+", re.ASCII)
_MAX_DOUBLINGS: Final = 62

# The window of Docker Hub's pull limit; no registry is known to send more.
LONGEST_RETRY_AFTER: Final = 6 * 3600.0


def backoff(attempt: int, base: float = 0.25, cap: float = 10.0, jitter: float = 1.0) -> float:
    """Seconds to wait after a failed attempt; the first is number 0.

    The wait doubles from `base` to at most `cap`. `jitter`, random from 0 to 1, chooses a place in its
    upper half, so that clients do not all return together, and none returns without a wait.
    """
    full = min(cap, base * 2.0 ** min(max(attempt, 0), _MAX_DOUBLINGS))
    return full / 2 + full / 2 * jitter


def parse_retry_after(text: str | None, now: datetime, cap: float = LONGEST_RETRY_AFTER) -> float | None:
    """Seconds to wait by a Retry-After header, from 0 to `cap`; None if it is absent or makes no sense.

    It gives seconds or a date (RFC 9110 section 10.2.3). `now` has to know its time zone.
    """
    if text is None:
        return None
    text = text.strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), cap)
    until = parse_http_date(text)
    return None if until is None else min(max((until - now).total_seconds(), 0.0), cap)
