"""Sends signed notifications to a URL."""

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
from mirror.upstream.translation import translated

# For one attempt: until the connection is established, and until the headers of the response have arrived.
_CONNECT_TIMEOUT_S, _RESPONSE_TIMEOUT_S = 5.0, 10.0


class Webhook:
    """Sends notifications to one URL.

    Args:
        secret_file: holds the key of the signature; read at each use. None for no signature.

    Attributes:
        host: host and port of the URL, for the log; the rest of it may be a secret.
        receiver: stands for the whole URL, and does not reveal it.
    """

    def __init__(self, url: str, secret_file: Path | None = None) -> None:
        self._url = URL(url)
        self._secret_file = secret_file
        self.host = self._url.authority
        self.receiver = hashlib.sha256(url.encode()).hexdigest()[:16]

    async def post(self, body: bytes, event: str, delivery: str) -> None:
        """Deliver a body in JSON; takes 10 seconds at most. Redirects are not followed.

        Args:
            event: the kind of event, in one word.
            delivery: identifies the notification, also when it is sent again.

        Raises:
            UpstreamError: it did not arrive; the next attempt may succeed.
            NotificationRefused: the receiver refuses it for good.
        """
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"registry-mirror/{__version__}",
            "X-Registry-Mirror-Event": event,
            "X-Registry-Mirror-Delivery": delivery,
            **await self._signature(body),
        }
        with translated(self._url):
            async with (
                asyncio.timeout(_RESPONSE_TIMEOUT_S),
                # A session each time: notifications are rare, and the next one may come after hours.
                aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
                    cookie_jar=aiohttp.DummyCookieJar(),
                    trust_env=False,
                ) as session,
                session.post(self._url, data=body, headers=headers, allow_redirects=False) as response,
            ):
                status = response.status
        self._judge(status)

    async def _signature(self, body: bytes) -> dict[str, str]:
        if self._secret_file is None:
            return {}
        key = await _key(self._secret_file)
        return {"X-Registry-Mirror-Signature": "sha256=" + hmac.new(key, body, hashlib.sha256).hexdigest()}

    def _judge(self, status: int) -> None:
        """Raise what a status means."""
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
        # Anybody could sign with an empty key.
        raise CredentialsRefused(f"secret_file {path} is empty")
    return key
