"""The mapping from errors to responses (OCI distribution-spec, Error Codes).

A client needs an answer fast, and one after which it does what helps its user: try another host, wait, or stop.
Errors are 503, not 502 or 504, because containerd tries the next host after 503. What upstream denies is 404, because
Docker then asks Docker Hub itself, with its user's own credentials.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from mirror.core import errors as core
from mirror.core.redaction import without_secret
from mirror.errors import (
    AccessDenied,
    ConnectionWithdrawn,
    DigestMismatch,
    NotFound,
    Offline,
    OldImageLost,
    PolicyDenied,
    RequestLoop,
    StorageError,
    TooManyDownloads,
    UpstreamError,
    UpstreamRateLimited,
)

_RETRY_AFTER = 10
# Errors of the mirror itself.
_OUT_OF_ORDER: dict[type[Exception], str] = {
    RequestLoop: "the mirrors' upstreams lead in a circle",
    StorageError: "the mirror's store is out of order",
    ConnectionWithdrawn: "upstream was not asked to the end",
    OldImageLost: "the tag is held back, and its old image cannot be had any more",
}


@dataclass(frozen=True)
class Problem:
    """An error response.

    Attributes:
        code: an error code of the specification.
        detail: never empty; Docker retries an error without detail for a minute.
    """

    status: int
    code: str
    message: str
    detail: Any
    headers: dict[str, str] = field(default_factory=dict)

    def body(self) -> bytes:
        """The JSON body of the specification."""
        error = {"code": self.code, "message": self.message, "detail": self.detail}
        return json.dumps({"errors": [error]}).encode()


def problem(error: Exception, kind: str) -> Problem:
    """The response to an error of a request of a kind (manifest, blob, tags, referrers)."""
    text = without_secret(str(error))
    if isinstance(error, core.InvalidInput):
        return Problem(400, _invalid_code(error), "the request is malformed", text)
    if isinstance(error, NotFound | Offline):
        codes = {"manifest": "MANIFEST_UNKNOWN", "blob": "BLOB_UNKNOWN"}
        message = "upstream does not have it" if isinstance(error, NotFound) else "this mirror is offline, and does not hold it"
        return Problem(404, codes.get(kind, "NAME_UNKNOWN"), message, text)
    if isinstance(error, AccessDenied):
        return Problem(404, "NAME_UNKNOWN", "upstream does not have it, or does not grant it to this mirror", text)
    if isinstance(error, PolicyDenied | TooManyDownloads):
        return _refused(error)
    if isinstance(error, DigestMismatch):
        return _unavailable("upstream delivered other bytes than asked for", text, error)
    if isinstance(error, UpstreamRateLimited):
        return _unavailable("upstream limits the rate of pulls", text, error, "TOOMANYREQUESTS")
    if isinstance(error, UpstreamError):
        return _unavailable("upstream cannot be asked, and it is not cached", text, error)
    for cause, message in _OUT_OF_ORDER.items():
        if isinstance(error, cause):
            return _unavailable(message, text, None)
    return Problem(500, "UNKNOWN", "the mirror made a mistake; its log says more", type(error).__name__)


def _refused(error: PolicyDenied | TooManyDownloads) -> Problem:
    if isinstance(error, TooManyDownloads):
        return too_many("downloads that one address has begun", str(error))
    return Problem(403, "DENIED", f"this mirror is configured not to serve it ({error.rule})", str(error))


def not_found(target: str) -> Problem:
    """The path is unknown."""
    return Problem(404, "UNSUPPORTED", "there is nothing of this kind here", without_secret(target)[:200])


def malformed(cause: str) -> Problem:
    """The request is not valid HTTP, or exceeds a limit."""
    return Problem(400, "UNSUPPORTED", "the request is malformed", cause)


def outside() -> Problem:
    """The client's address is outside the accepted networks."""
    return Problem(403, "DENIED", "this mirror does not serve your address", "the address lies in none of its networks")


def misdirected(key: str) -> Problem:
    """The Host header names no host of the mirror.

    Args:
        key: the configuration key that adds names.
    """
    detail = f"the Host header is no address and no name of this host; {key} can add one"
    return Problem(403, "DENIED", "this mirror does not answer to that name", detail)


def unauthorized(why: str) -> Problem:
    """Credentials are missing or wrong (RFC 7617)."""
    return Problem(401, "UNAUTHORIZED", "log in to this mirror", why, {"WWW-Authenticate": 'Basic realm="registry-mirror"'})


def too_many(what: str, detail: str = "try again a little later") -> Problem:
    """A client exceeds a limit."""
    return Problem(429, "TOOMANYREQUESTS", f"too many {what}", detail, {"Retry-After": "1"})


def overloaded(why: str) -> Problem:
    """All clients together exceed a limit."""
    return Problem(503, "UNAVAILABLE", "this mirror is overloaded", why, {"Retry-After": str(_RETRY_AFTER)})


def write_refused(method: str) -> Problem:
    """A mirror is read-only."""
    return Problem(
        405,
        "UNSUPPORTED",
        "this mirror is read-only: push to the registry itself",
        method[:20],
        {"Allow": "GET, HEAD"},
    )


def range_refused(size: int) -> Problem:
    """No byte of the range is in the blob (RFC 9110 section 15.5.17)."""
    return Problem(
        416,
        "RANGE_INVALID",
        "no byte of the blob lies in the range",
        {"size": size},
        {"Content-Range": f"bytes */{size}"},
    )


def _unavailable(message: str, text: str, error: UpstreamError | None, code: str = "UNAVAILABLE") -> Problem:
    wait = error.retry_after if error is not None and error.retry_after is not None else _RETRY_AFTER
    return Problem(503, code, message, text, {"Retry-After": str(max(1, round(wait)))})


def _invalid_code(error: core.InvalidInput) -> str:
    for kind, code in (
        (core.InvalidPage, "PAGINATION_NUMBER_INVALID"),
        (core.InvalidDigest, "DIGEST_INVALID"),
        (core.InvalidTag, "TAG_INVALID"),
        (core.InvalidName, "NAME_INVALID"),
    ):
        if isinstance(error, kind):
            return code
    return "UNSUPPORTED"
