"""Failures of upstream that a node has met, as the other nodes read them in Redis."""

from __future__ import annotations

from mirror.errors import UpstreamError, UpstreamFailing, UpstreamRateLimited, UpstreamTimeout, UpstreamUnreachable

_MAX_MESSAGE = 200
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
    if kind is None or not (wait == "" or (wait.isascii() and wait.isdigit())):
        return None
    return kind(message).again("another node has asked", float(wait or 1))
