"""Sessions of the status page: the cookie of a browser, and the value that each of its forms has to send.

A cookie is a time, a random number and their HMAC, so each process of a mirror accepts it, and nothing is stored. The key of the
HMAC is made of a secret of this run of the mirror and of the admin token: a session ends with its time, with another token, and
with a restart. The cookie says nothing about the token.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

SESSION_S: Final = 12 * 3600
"""A session ends after this time."""
_MAX_COOKIE: Final = 200


@dataclass(frozen=True, slots=True)
class Session:
    """A session of a browser.

    Attributes:
        cookie: the value of its cookie.
        form_value: what its forms have to send (CSRF); no page of another origin can read it.
    """

    cookie: str
    form_value: str


class Sessions:
    """Issues and checks sessions.

    Args:
        secret: of this run of the mirror, the same in all of its processes.
        clock: seconds since the epoch.
    """

    def __init__(self, secret: bytes, clock: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._clock = clock
        self.token = None

    @property
    def token(self) -> str | None:
        """The admin token; None if the address has none, and a browser has a session without signing in."""
        return self._token

    @token.setter
    def token(self, token: str | None) -> None:
        self._token = token
        self._key = _hmac(self._secret, "no token" if token is None else f"token {token}")

    def begin(self) -> Session:
        """Return a new session."""
        return self._session(f"{int(self._clock()) + SESSION_S}.{secrets.token_hex(16)}")

    def find(self, cookie: str | None) -> Session | None:
        """Return the session of a cookie; None for one that is forged or has ended."""
        if cookie is None or len(cookie) > _MAX_COOKIE or not cookie.isascii():
            return None
        session = self._session(cookie.rpartition(".")[0])
        if not hmac.compare_digest(session.cookie, cookie):
            return None
        return session if self._clock() < int(cookie.partition(".")[0]) else None

    def is_token(self, given: str) -> bool:
        """Whether this is the admin token."""
        return self._token is not None and hmac.compare_digest(given.encode("utf-8", "surrogateescape"), self._token.encode())

    def _session(self, text: str) -> Session:
        return Session(f"{text}.{_hmac(self._key, f'cookie {text}').hex()}", _hmac(self._key, f"form {text}").hex())


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode("utf-8", "surrogateescape"), hashlib.sha256)
