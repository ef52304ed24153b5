"""Asks an upstream once, with the configured account, to test whether a pull would succeed."""

from __future__ import annotations

import asyncio

from mirror.core.http_date import parse_http_date
from mirror.core.media import UPSTREAM_ACCEPT
from mirror.errors import CredentialsRefused, UpstreamError
from mirror.upstream.attempt import UpstreamRequest
from mirror.upstream.exchange import Exchange
from mirror.upstream.upstream import Upstream

_TIMEOUT_S = 15.0


async def ask(upstream: Upstream, repository: str) -> None:
    """Send a HEAD for a manifest, which costs no pull; that the repository does not exist is an answer, too.

    Raises:
        UpstreamError: it does not answer usefully, or refuses the account.
    """
    request = UpstreamRequest("manifest", repository, "manifests/latest", "HEAD", {"Accept": UPSTREAM_ACCEPT})

    async def head(exchange: Exchange) -> None:
        await exchange.response()

    attempt = await upstream.attempt(request, head, _TIMEOUT_S)
    await attempt.resources.aclose()
    if upstream.login.problem is not None:
        raise CredentialsRefused(upstream.login.problem)
    if isinstance(attempt.error, UpstreamError):
        raise attempt.error


async def date(upstream: Upstream) -> float | None:
    """Return the time by an upstream's clock, in seconds since the epoch; None if it sends no date. Raises UpstreamError."""
    endpoint = upstream.route.endpoint
    async with asyncio.timeout(_TIMEOUT_S):
        url = endpoint.url.joinpath("v2", "")
        async with upstream.route.http.request("GET", url, {}, tls=endpoint.tls, proxy=endpoint.proxy) as response:
            date = parse_http_date(response.headers.get("Date", ""))
            return None if date is None else date.timestamp()
