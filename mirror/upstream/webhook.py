"""A receiver of notifications: where they are sent, and how it can tell who sent them."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from pathlib import Path

import aiohttp
from yarl import URL

from mirror import __version__
from mirror.errors import (
    CredentialsRefused,
    NotificationRefused,
    UpstreamFailing,
    UpstreamRateLimited,
    UpstreamTimeout,
)
from mirror.small_files import read_secret
from mirror.upstream.http import translated

# For one attempt, in seconds: until a connection stands, and until the headers of the answer are there.
_CONNECT, _ANSWER = 5.0, 10.0


class Webhook:
    """Sends notifications to one URL.

    Args:
        secret_file: holds the key of the signature; read at each use. None to sign nothing.

    Attributes:
        host: where they go, for the log; the rest of the URL may be a secret.
    """

    def __init__(self, url: str, secret_file: Path | None = None) -> None:
        self._url = URL(url)
        self._secret_file = secret_file
        self.host = self._url.authority

    async def post(self, body: bytes, event: str, delivery: str) -> None:
        """Deliver a body in JSON; takes 10 seconds at most. Redirects are not followed.

        Args:
            event: what it is about, in one word.
            delivery: names it; the same whenever it is tried again, so that the receiver can tell.

        Raises:
            UpstreamError: it did not arrive, which may be otherwise the next time.
            NotificationRefused: the receiver does not want it, and will not.
        """
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"registry-mirror/{__version__}",
            "X-Registry-Mirror-Event": event,
            "X-Registry-Mirror-Delivery": delivery,
        }
        if self._secret_file is not None:
            key = await _key(self._secret_file)
            headers["X-Registry-Mirror-Signature"] = "sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest()
        with translated(self._url):
            async with (
                asyncio.timeout(_ANSWER),
                # One of its own each time: notifications are rare, and the next may come after hours.
                aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    trust_env=False,
                ) as session,
                session.post(self._url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                status = response.status
        self._judge(status)

    def _judge(self, status: int) -> None:
        """What an answer means; its body does not matter."""
        words = f"{self.host} answered {status}"
        if 200 <= status < 300:
            return
        if status == 408:
            raise UpstreamTimeout(words)
        if status == 429:
            raise UpstreamRateLimited(words)
        if status >= 500:
            raise UpstreamFailing(words)
        raise NotificationRefused(words)


async def _key(path: Path) -> bytes:
    try:
        key = await read_secret(path)
    except OSError as error:
        raise CredentialsRefused(f"secret_file {path} cannot be read: {error.strerror}") from error
    if not key:
        # Anybody could sign with it.
        raise CredentialsRefused(f"secret_file {path} is empty")
    return key
