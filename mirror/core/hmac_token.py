"""The token that signs a request from one node of a cluster to another: an HMAC (RFC 2104) with SHA-256 of a shared secret."""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import ClassVar, Final

from mirror.core.errors import InvalidInput

MAX_AGE_S: Final = 60.0
"""A token is valid for this time before and after the time that it states."""

_TOKEN = re.compile(r"Mirror-HMAC time=(\d{1,15}),nonce=([0-9a-f]{32}),mac=([0-9a-f]{64})", re.ASCII)


class InvalidToken(InvalidInput):
    """No token, or one that does not sign the request."""

    what = "token of a node"


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """What a token signs.

    Attributes:
        target: path and query, as they are sent.
        range: the value of the header Range, or nothing.
        receiver: the node that the request is for: another node cannot be sent the same token.
    """

    method: str
    target: str
    range: str
    receiver: str

    _separator: ClassVar[str] = "\n"

    def text(self, seconds: int, nonce: str) -> bytes:
        """The signed bytes. No field can contain the separator; one may have bytes that are no text, as surrogates."""
        fields = (self.method, self.target, self.range, self.receiver, str(seconds), nonce)
        return self._separator.join(fields).encode("utf-8", "surrogateescape")


def sign(secret: bytes, request: SignedRequest, now: float, nonce: str) -> str:
    """Return the token of a request, for the header Authorization.

    Args:
        now: seconds since the epoch.
        nonce: 32 hexadecimal digits that are used once.
    """
    seconds = int(now)
    return f"Mirror-HMAC time={seconds},nonce={nonce},mac={_mac(secret, request, seconds, nonce)}"


def verify(secrets: Iterable[bytes], request: SignedRequest, token: str, now: float) -> str:
    """Return the nonce of a token that one of the secrets has made for a request. The caller checks that it is new.

    Raises:
        InvalidToken: it is none, of another secret or request, or too old. The message does not repeat it.
    """
    found = _TOKEN.fullmatch(token)
    if found is None:
        raise InvalidToken("", "the header Authorization has none")
    seconds, nonce, mac = int(found[1]), found[2], found[3]
    if not any(hmac.compare_digest(_mac(secret, request, seconds, nonce), mac) for secret in secrets):
        raise InvalidToken("", "it is of another secret, or of another request")
    if abs(now - seconds) > MAX_AGE_S:
        raise InvalidToken("", f"its time differs by {abs(now - seconds):.0f} s from the time here")
    return nonce


def _mac(secret: bytes, request: SignedRequest, seconds: int, nonce: str) -> str:
    return hmac.new(secret, request.text(seconds, nonce), sha256).hexdigest()
