"""Asks an upstream once, with the configured account, to test whether a pull would succeed."""

from __future__ import annotations

from mirror.errors import UpstreamError
from mirror.upstream.attempt import UpstreamRequest
from mirror.upstream.exchange import Exchange
from mirror.upstream.http import drain
from mirror.upstream.upstream import Upstream

_TIMEOUT_S = 15.0


async def ask(upstream: Upstream) -> None:
    """Send GET /v2/, with a token of the account if the registry asks for one, as `docker login` does. It costs no pull.

    Whether the account is accepted is noted by the upstream's `login`, and the time that it tells by its `health`.

    Raises:
        UpstreamError: the upstream does not answer, is no registry, or refuses the account.
    """

    async def get(exchange: Exchange) -> None:
        await drain(await exchange.response())

    attempt = await upstream.attempt(UpstreamRequest("check", "", ""), get, _TIMEOUT_S)
    await attempt.close()
    if isinstance(attempt.error, UpstreamError):
        raise attempt.error
