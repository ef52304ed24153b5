"""How long the target of a redirect may be used again.

The signatures are those of AWS (Signature Version 4, query parameters), CloudFront (canned policy), Google Cloud Storage (V2 and
V4 signing) and Azure (shared access signatures).
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

# For a target without a known expiry. A target that refuses costs one round trip.
_DEFAULT_S: Final = 60.0
# Clocks differ, and a request takes a while.
_MARGIN_S: Final = 30.0
# What a registry has granted it may refuse later: it is asked again as often as a token of Docker Hub expires.
_MAX_S: Final = 300.0
_EPOCH: Final = re.compile(r"[0-9]{9,11}", re.ASCII)
_FORBIDDEN: Final = re.compile(r"\b(no-store|no-cache|private)\b", re.ASCII | re.IGNORECASE)


def reusable_for(query: Mapping[str, str], cache_control: str, now: datetime) -> float:
    """Seconds for which a redirect's target may be used again; 0 if it may not.

    Args:
        query: the parameters of the target's URL.
        cache_control: of the redirect (RFC 9111 section 5.2.2).
        now: by the clock of the host that redirects; knows its time zone.
    """
    if _FORBIDDEN.search(cache_control):
        return 0.0
    expires = _expires(query)
    if expires is None:
        return _DEFAULT_S
    return min(max(0.0, (expires - now).total_seconds() - _MARGIN_S), _MAX_S)


def _expires(query: Mapping[str, str]) -> datetime | None:
    """When a signed URL expires, None if it has no expiry in a known form."""
    try:
        for prefix in ("X-Amz", "X-Goog"):
            if f"{prefix}-Expires" in query:
                signed = datetime.strptime(query[f"{prefix}-Date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
                return datetime.fromtimestamp(signed + int(query[f"{prefix}-Expires"]), UTC)
        if _EPOCH.fullmatch(query.get("Expires", "")):
            return datetime.fromtimestamp(int(query["Expires"]), UTC)
        if "se" in query and "sig" in query:
            until = datetime.fromisoformat(query["se"])
            return until if until.tzinfo else until.replace(tzinfo=UTC)
    except (KeyError, ValueError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)
    return None
