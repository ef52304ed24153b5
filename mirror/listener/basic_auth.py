"""HTTP Basic authentication (RFC 7617) against bcrypt hashes."""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor

import bcrypt

from mirror.aio import SingleFlight, in_thread
from mirror.core.bounded_cache import BoundedCache
from mirror.core.htpasswd import cost

# Lifetimes of cached results, for right and for wrong credentials.
_GOOD_TTL_S, _BAD_TTL_S = 300.0, 10.0
_MAX_KEPT = 1024
# Pending checks; further ones are refused.
_MAX_WAITING = 32
# bcrypt ignores further bytes.
_MAX_BYTES = 72


class TooManyChecks(Exception):
    """The limit of pending password checks is reached."""


class BasicAuthenticator:
    """Checks Authorization headers. Its cache holds keyed hashes only, from which no password can be recovered.

    Args:
        users: bcrypt hashes by user name, at least one.
        executor: its threads run bcrypt.
        clock: monotonic seconds.
    """

    def __init__(self, users: Mapping[bytes, bytes], executor: Executor, clock: Callable[[], float] = time.monotonic) -> None:
        self._users = users
        self._nobody = max(users.values(), key=cost)
        self._executor = executor
        self._key = secrets.token_bytes(32)
        self._clock = clock
        self._good: BoundedCache[bytes, bool] = BoundedCache(_MAX_KEPT)
        self._bad: BoundedCache[bytes, bool] = BoundedCache(_MAX_KEPT)
        self._checks: SingleFlight[bool] = SingleFlight()

    def known(self, header: str) -> bool | None:
        """The cached result of a check; None if there is none."""
        fingerprint, now = self._fingerprint(header), self._clock()
        right = self._good.get(fingerprint, now)
        return self._bad.get(fingerprint, now) if right is None else right

    def is_being_checked(self, header: str) -> bool:
        """Whether a check of these credentials is in progress; a second one joins it."""
        return self._fingerprint(header) in self._checks

    async def check(self, header: str) -> bool:
        """Whether the credentials are right.

        Raises:
            TooManyChecks: that cannot be said now.
        """
        given = _basic(header)
        if given is None:
            return False
        fingerprint = self._fingerprint(header)
        if len(self._checks) >= _MAX_WAITING and fingerprint not in self._checks:
            raise TooManyChecks
        right, _ = await self._checks.run(fingerprint, lambda: in_thread(self._executor, self._matches, *given))
        kept, lifetime = (self._good, _GOOD_TTL_S) if right else (self._bad, _BAD_TTL_S)
        kept.put(fingerprint, right, expires=self._clock() + lifetime)
        return right

    async def close(self) -> None:
        """Cancel pending checks."""
        await self._checks.close()

    def _fingerprint(self, header: str) -> bytes:
        return hmac.digest(self._key, header.encode("utf-8", "surrogateescape"), "sha256")

    def _matches(self, user: bytes, password: bytes) -> bool:
        """Check a password; takes as long for an unknown user as for a known one."""
        hashed = self._users.get(user)
        try:
            same = bcrypt.checkpw(password[:_MAX_BYTES], hashed or self._nobody)
        except ValueError:
            # bcrypt refuses zero bytes.
            return False
        return same and hashed is not None


def user_of(header: str) -> str:
    """The user name in a header, as text; empty if there is none."""
    given = _basic(header)
    return "" if given is None else given[0].decode(errors="replace")


def _basic(header: str) -> tuple[bytes, bytes] | None:
    """The user name and password in a header, or None."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return (user, password) if colon else None
