"""Exceptions of the mirror.

An adapter turns foreign exceptions (aiohttp, OSError, sqlite3) into one of these. `mirror.listener.oci_errors` alone maps them
to HTTP statuses. Input that does not parse raises `mirror.core.errors.InvalidInput`.
"""

from __future__ import annotations

from copy import copy
from typing import Self


class MirrorError(Exception):
    """The base of all exceptions that this package raises on purpose.

    Attributes:
        is_logged: the log has a line about it. All requests that wait for the same result get the same exception.
    """

    is_logged = False


class ConfigurationError(MirrorError):
    """The configuration is invalid; each problem is one line that names the key.

    Attributes:
        problems: the lines, at least one.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class UpstreamError(MirrorError):
    """Upstream failed to answer usefully: an outage, so cached content may be served stale.

    Attributes:
        reason: one bounded word for logs and metrics.
        retry_after: seconds that upstream asked to wait before the next request, if it did.
        another: another configured upstream may succeed.
        transient: a repeated request may succeed.
        sent: a request was sent; False if a remembered failure is repeated.
    """

    reason = "error"
    sent = True
    another = False
    transient = False

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def again(self, prefix: str, retry_after: float) -> Self:
        """A copy for a request for which upstream was not asked again."""
        other = type(self)(f"{prefix}: {self}", retry_after=retry_after)
        other.sent = False
        return other

    def delayed(self, retry_after: float) -> Self:
        """The same failure with another `retry_after`."""
        return self._with(retry_after=retry_after)

    def with_alternative(self) -> Self:
        """The same failure where another upstream may do better."""
        return self._with(another=True)

    def _with(self, **changes: object) -> Self:
        other = copy(self)
        other.__dict__.update(changes)
        other.__cause__ = self
        return other

    def bare(self) -> Self:
        """A copy without traceback and cause, for a cache."""
        return type(self)(str(self), retry_after=self.retry_after)


class UpstreamUnreachable(UpstreamError):
    """No connection to upstream: name resolution, routing, refusal, TLS, or the time limit."""

    reason = "connect"
    transient = True


class UpstreamConnectTimeout(UpstreamUnreachable):
    """No connection within the time limit. As long again would be longer than clients wait."""

    transient = False


class UpstreamTimeout(UpstreamError):
    """Upstream did not answer, or stalled, for the time limit."""

    reason = "timeout"


class UpstreamTooSlow(UpstreamTimeout):
    """Upstream sent so few bytes in a minute that the body would hold a connection, and its clients, without end."""


class UpstreamFailing(UpstreamError):
    """Upstream answered 5xx."""

    reason = "server_error"
    transient = True


class UpstreamRateLimited(UpstreamError):
    """Upstream answered 429."""

    reason = "rate_limited"


class UpstreamDisconnected(UpstreamError):
    """Upstream ended a body before its announced length."""

    reason = "cut"
    transient = True


class UpstreamProtocolError(UpstreamError):
    """Upstream broke the protocol: wrong digest, length or type, endless redirects, a page instead of a manifest."""

    reason = "protocol"


class RangeIgnored(UpstreamProtocolError):
    """Upstream answers the request for a range with the whole blob."""


class UpstreamSizeChanged(UpstreamProtocolError):
    """Upstream states another size of a blob than before.

    Attributes:
        size: in bytes; None if upstream only answered 416.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, size: int | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.size = size


class Offline(UpstreamError):
    """The registry is configured to be offline: upstream is never asked."""

    reason = "offline"
    sent = False


class SignaturesUnavailable(UpstreamError):
    """The signatures of a manifest cannot be had for now, so nobody knows whether it may be served."""

    @classmethod
    def of(cls, what: str, error: UpstreamError) -> Self:
        """The same failure, of a manifest whose signatures were asked for."""
        other = cls(f"the signatures of {what} cannot be had for now: {error}", retry_after=error.retry_after)
        other.reason = error.reason
        return other


class UpstreamBusy(UpstreamError):
    """No upstream connection became free within a client's time limit."""

    reason = "busy"


class ConnectionWithdrawn(MirrorError):
    """An upstream connection was withdrawn from its user. No failure of upstream; acquire another one."""


class MethodRefused(UpstreamProtocolError):
    """Upstream refuses HEAD."""


class CredentialsRefused(UpstreamError):
    """Upstream refused the configured credentials: an error of the mirror, not of the client."""

    reason = "credentials"


class UpstreamRefusal(MirrorError):
    """A negative answer of upstream. No outage: nothing stale is served instead."""


class NotFound(UpstreamRefusal):
    """Upstream does not have the content (404)."""


class AccessDenied(UpstreamRefusal):
    """Upstream denies access (401 or 403 with a valid token)."""


class DigestMismatch(UpstreamProtocolError):
    """The bytes from upstream do not have the requested digest."""

    reason = "digest_mismatch"


class PolicyDenied(MirrorError):
    """The configuration forbids serving the content; upstream was not asked.

    Attributes:
        rule: the rule that matched, in words.
    """

    def __init__(self, message: str, rule: str) -> None:
        super().__init__(f"{message}: {rule}")
        self.rule = rule


class TooYoung(PolicyDenied):
    """The content has not been known here for as long as a cool-down demands.

    Attributes:
        until: when it may be pulled, in seconds since the epoch.
    """

    def __init__(self, message: str, rule: str, until: float) -> None:
        super().__init__(message, rule)
        self.until = until


class OldImageLost(MirrorError):
    """A tag is held back, and the image that it named before cannot be had any more."""


class Untrusted(PolicyDenied):
    """A rule of `trust` does not find the content signed, and refuses it."""


class StorageError(MirrorError):
    """The store cannot take bytes (full, read-only, I/O error); pulls continue without it.

    Attributes:
        reason: one bounded word: `full`, `too_large`, `read_only`, `io`, or `busy` if another process holds the blob and hangs.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class FlushFailed(StorageError):
    """Flushing failed. The kernel may have dropped the bytes, so they have to be fetched again."""


class TooManyDownloads(MirrorError):
    """A client address has reached its limit of downloads, and none ended within the time limit."""


class RequestLoop(MirrorError):
    """A request returned through the upstreams to the mirror that sent it."""


class DownloadAbandoned(UpstreamError):
    """The download of the same blob in another worker failed."""

    reason = "abandoned"


class NotificationRefused(MirrorError):
    """The receiver refused a notification permanently."""
