"""The pull limit a registry reports (Docker Hub: `ratelimit-limit` and `ratelimit-remaining`)."""

import re
from typing import Final, NamedTuple

_MAX_DIGITS: Final = 15
_VALUE: Final = re.compile(rf"\s*(?P<value>[0-9]{{1,{_MAX_DIGITS}}})\s*(?P<parameters>[;,].*)?", re.ASCII | re.DOTALL)
_WINDOW: Final = re.compile(rf";\s*w\s*=\s*(?P<window>[0-9]{{1,{_MAX_DIGITS}}})\s*(?=[;,]|$)", re.ASCII)


class RateLimit(NamedTuple):
    """A number of pulls and the seconds it is for, None if they were not given."""

    value: int
    window: int | None


def parse_rate_limit(text: str | None) -> RateLimit | None:
    """Read `100;w=21600`; None if it is absent or makes no sense, for a limit is never worth a failed pull.

    Of several, separated by commas, the first counts.
    """
    match = _VALUE.fullmatch(text) if text is not None else None
    if match is None:
        return None
    window = _WINDOW.search((match["parameters"] or "").partition(",")[0])
    return RateLimit(int(match["value"]), int(window["window"]) if window else None)
