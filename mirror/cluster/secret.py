"""The secret that the nodes of a cluster share: signs requests to other nodes, and checks theirs."""

from __future__ import annotations

import hmac
import json
import os
import time
from hashlib import sha256
from pathlib import Path

import structlog

from mirror.config.cluster import secrets_in
from mirror.core.hmac_token import MAX_AGE_S, InvalidToken, SignedRequest, sign, verify
from mirror.small_files import read_text
from mirror.throttled_log import ThrottledLog

log = structlog.get_logger(__name__)

# Nonces that are remembered: more requests within their lifetime are refused rather than accepted twice.
_MAX_NONCES = 200_000


class ClusterSecret:
    """Signs and checks requests between nodes.

    Args:
        path: the file of the secrets.
        secrets: its content; `refresh` reads it again.

    Attributes:
        offset: what the clock of Redis is ahead of this host's, in seconds; tokens state the time of Redis.
    """

    def __init__(self, path: Path, secrets: tuple[bytes, ...]) -> None:
        self.offset = 0.0
        self._path = path
        self._secrets = secrets
        # In order of time: each with the time until which it counts.
        self._nonces: dict[str, float] = {}
        self._log = ThrottledLog(log, burst=1, interval=60.0)

    async def refresh(self) -> None:
        """Read the file again; an unusable one changes nothing."""
        try:
            found = secrets_in(await read_text(self._path))
        except (OSError, ValueError) as error:
            self._log.log("error", "cluster_secret_unusable", file=str(self._path), cause=str(error))
            return
        self._secrets = found

    def token(self, request: SignedRequest) -> str:
        """Return the token for a request to another node."""
        return sign(self._secrets[0], request, time.time() + self.offset, os.urandom(16).hex())

    def name(self, kind: str, *parts: str) -> str:
        """A name that all nodes give to something secret, and that nobody without the secret of the cluster can guess.

        It is another one after a rotation.
        """
        return hmac.new(self._secrets[0], json.dumps([kind, *parts]).encode(), sha256).hexdigest()

    def check(self, request: SignedRequest, token: str) -> None:
        """Accept a request of another node once. Each worker process remembers its own, so a repeated one may pass in another.

        Raises:
            InvalidToken: it is not signed, is old, or has been accepted before.
        """
        now = time.time() + self.offset
        try:
            nonce = verify(self._secrets, request, token, now)
            self._forget(now)
            if nonce in self._nonces:
                raise InvalidToken("", "it has been used before")
            if len(self._nonces) >= _MAX_NONCES:
                raise InvalidToken("", "too many requests are remembered")
        except InvalidToken as error:
            self._log.log("warning", "node_refused", cause=error.reason)
            raise
        self._nonces[nonce] = now + 2 * MAX_AGE_S

    def _forget(self, now: float) -> None:
        while self._nonces and (oldest := next(iter(self._nonces))) and self._nonces[oldest] < now:
            del self._nonces[oldest]
