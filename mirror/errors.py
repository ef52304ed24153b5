"""What can go wrong, in the words of the domain.

Foreign exceptions (aiohttp, OSError, sqlite3) stop at the adapter that met them and travel on as one of these. Only
`mirror.listener.oci_errors` knows which HTTP status each becomes. Input that does not parse is `mirror.core.errors.InvalidInput`.
"""

from __future__ import annotations

from copy import copy
from typing import Self


class MirrorError(Exception):
    """Anything this package raises on purpose."""


class ConfigurationError(MirrorError):
    """The configuration cannot be used; each problem is one line that names the key.

    Attributes:
        problems: the lines, at least one.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class UpstreamError(MirrorError):
    """Upstream could not be asked, or did not answer usefully: an outage, so what is held may be served stale.

    Attributes:
        reason: one bounded word for logs and metrics.
        retry_after: seconds after which upstream wants to be asked again, if it said so.
        another: another upstream of the list may well do better.
        transient: the same request may well be answered the next time.
        asked: upstream was asked, and this is not the memory of an earlier failure.
    """

    reason = "error"
    asked = True
    another = False
    transient = False

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    def again(self, prefix: str, retry_after: float) -> Self:
        """The same failure for somebody for whom upstream was not asked anew."""
        other = type(self)(f"{prefix}: {self}", retry_after=retry_after)
        other.asked = False
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
        """The same failure without traceback and cause, to be kept."""
        return type(self)(str(self), retry_after=self.retry_after)


class UpstreamUnreachable(UpstreamError):
    """No connection to upstream: name, route, refusal, TLS, or none within the time limit."""

    reason = "connect"
    transient = True


class UpstreamConnectTimeout(UpstreamUnreachable):
    """No connection within the time limit. As long again would be longer than clients wait."""

    transient = False


class UpstreamTimeout(UpstreamError):
    """Upstream did not answer or go on within its time limit."""

    reason = "timeout"


class UpstreamFailing(UpstreamError):
    """Upstream answered 5xx."""

    reason = "server_error"
    transient = True


class UpstreamRateLimited(UpstreamError):
    """Upstream answered 429."""

    reason = "rate_limited"


class UpstreamDisconnected(UpstreamError):
    """Upstream ended a body before its announced end."""

    reason = "cut"
    transient = True


class UpstreamProtocolError(UpstreamError):
    """Upstream broke the protocol: wrong digest, length or type, endless redirects, a page instead of a manifest."""

    reason = "protocol"


class UpstreamSizeChanged(UpstreamProtocolError):
    """Upstream says that a blob has another size than it said before.

    Attributes:
        size: what it says now, in bytes; None if it only said that there is nothing where bytes were asked for (416).
    """

    def __init__(self, message: str, *, retry_after: float | None = None, size: int | None = None) -> None:
        super().__init__(message, retry_after=retry_after)
        self.size = size


class UpstreamBusy(UpstreamError):
    """The limit of connections to upstream was reached for longer than a client should wait."""

    reason = "busy"


class ConnectionWithdrawn(MirrorError):
    """A connection to upstream was taken back from whoever used it. Says nothing about upstream; ask for another one."""


class MethodRefused(UpstreamProtocolError):
    """Upstream does not answer HEAD."""


class CredentialsRefused(UpstreamError):
    """The configured credentials were refused: the mirror's own fault, not the client's."""

    reason = "credentials"


class UpstreamRefusal(MirrorError):
    """Upstream's negative answer: not an outage, and never replaced by something stale."""


class NotFound(UpstreamRefusal):
    """Upstream does not have it (404)."""


class AccessDenied(UpstreamRefusal):
    """Upstream does not grant it (401 or 403 although a token was obtained)."""


class DigestMismatch(UpstreamProtocolError):
    """The bytes that upstream delivered do not have the digest they were asked by."""

    reason = "digest_mismatch"


class PolicyDenied(MirrorError):
    """This mirror is configured not to serve it; upstream was not asked.

    Attributes:
        rule: the rule that spoke, in words.
    """

    def __init__(self, message: str, rule: str) -> None:
        super().__init__(f"{message}: {rule}")
        self.rule = rule


class StorageError(MirrorError):
    """The store cannot take bytes (full, read-only, I/O error); pulls go on without it.

    Attributes:
        reason: one bounded word: `full`, `too_large`, `read_only`, `io`, or `busy` if another process holds the blob and hangs.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class FlushFailed(StorageError):
    """The disk did not take what was written: the kernel may have dropped it, so the bytes have to be fetched again."""


class TooManyDownloads(MirrorError):
    """A client address has begun as many downloads as it may, and none has ended for some time."""


class RequestLoop(MirrorError):
    """A request has come back to the mirror that sent it, by way of its own upstreams."""


class DownloadAbandoned(UpstreamError):
    """Another worker's download of the same blob ended without the blob."""

    reason = "abandoned"


class NotificationRefused(MirrorError):
    """The receiver of notifications does not want one, and would not want it the next time either."""
