"""Failures of upstream that a node has met, as the other nodes read them in Redis."""

from __future__ import annotations

import re

from mirror.core.retry import LONGEST_RETRY_AFTER
from mirror.errors import UpstreamError, UpstreamFailing, UpstreamRateLimited, UpstreamTimeout, UpstreamUnreachable

_MAX_MESSAGE = 200
_WAIT = re.compile("[0-9]{0,9}")
# By reason. Others are about one response, or about the node itself.
_SHARED: dict[str, type[UpstreamError]] = {
    kind.reason: kind for kind in (UpstreamUnreachable, UpstreamTimeout, UpstreamFailing, UpstreamRateLimited)
}


def encode_failure(error: UpstreamError) -> str | None:
    """Return a failure as text; None if it says nothing about what other nodes would meet."""
    if not error.sent or error.reason not in _SHARED:
        return None
    wait = "" if error.retry_after is None else f"{error.retry_after:.0f}"
    return f"{error.reason}|{wait}|{str(error)[:_MAX_MESSAGE]}"


def decode_failure(text: str) -> UpstreamError | None:
    """Return the failure that `encode_failure` has written; None if the text is of another version."""
    reason, _, rest = text.partition("|")
    wait, _, message = rest.partition("|")
    kind = _SHARED.get(reason)
    if kind is None or _WAIT.fullmatch(wait) is None:
        return None
    return kind(message[:_MAX_MESSAGE]).again("another node has asked", min(float(wait or 1), LONGEST_RETRY_AFTER))
