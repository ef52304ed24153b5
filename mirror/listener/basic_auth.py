"""Who a client says it is: user names and passwords as HTTP carries them (RFC 7617), held against bcrypt hashes."""

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

# Credentials that are right need no second look for so long, and wrong ones get none. Seconds.
_GOOD_FOR, _BAD_FOR = 300.0, 10.0
_MAX_KEPT = 1024
# Checks that wait for their turn; further ones are not begun.
_MAX_WAITING = 32
# bcrypt looks at no more than this.
_MAX_BYTES = 72


class TooManyChecks(Exception):
    """So many passwords are being checked that this one would have to wait too long."""


class BasicAuthenticator:
    """Checks the Authorization header of requests. What it remembers of them cannot be turned back into a password.

    Args:
        users: bcrypt hashes by user name, at least one.
        executor: its threads are what wrong passwords can keep busy.
        clock: seconds, never going back.
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
        """Whether the credentials are right, if that is remembered."""
        fingerprint, now = self._fingerprint(header), self._clock()
        right = self._good.get(fingerprint, now)
        return self._bad.get(fingerprint, now) if right is None else right

    def is_being_checked(self, header: str) -> bool:
        """Whether a check of these credentials is under way, so that another one costs nothing."""
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
        kept, lifetime = (self._good, _GOOD_FOR) if right else (self._bad, _BAD_FOR)
        kept.put(fingerprint, right, expires=self._clock() + lifetime)
        return right

    async def close(self) -> None:
        """Wait for no check any more."""
        await self._checks.close()

    def _fingerprint(self, header: str) -> bytes:
        return hmac.digest(self._key, header.encode("utf-8", "surrogateescape"), "sha256")

    def _matches(self, user: bytes, password: bytes) -> bool:
        """As slow for a user that there is not as for one that there is."""
        hashed = self._users.get(user)
        try:
            same = bcrypt.checkpw(password[:_MAX_BYTES], hashed or self._nobody)
        except ValueError:
            # A zero byte, which no password has.
            return False
        return same and hashed is not None


def _basic(header: str) -> tuple[bytes, bytes] | None:
    """User name and password of a header, or None if it holds none."""
    scheme, _, encoded = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        user, colon, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
    except (binascii.Error, ValueError):
        return None
    return (user, password) if colon else None
