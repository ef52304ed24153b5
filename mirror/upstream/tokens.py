"""Tokens: fetched once per scope, shared by all who wait for one, refreshed before they expire.

The flow is that of the distribution token specification: a 401 names realm, service and scope; the realm is asked, with the
configured credentials if there are any and the realm may have them; the request is repeated once with the token.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from functools import partial

from yarl import URL

from mirror.aio import SingleFlight
from mirror.core.bounded_cache import BoundedCache
from mirror.core.challenge import Challenge, realm_allowed
from mirror.errors import (
    AccessDenied,
    CredentialsRefused,
    UpstreamError,
    UpstreamFailing,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamRefusal,
)
from mirror.upstream.attempt import Attempt, Place
from mirror.upstream.hedge import hedged
from mirror.upstream.http import Endpoint, Http, read_bounded, translated
from mirror.upstream.login import Credentials, Login

_TOKEN_LIMIT = 1 << 20
# The specification's default and least lifetime of a token, in seconds.
_SHORTEST = 60.0
_EARLY = 30.0
_MAX_SCOPES = 10_000


class Tokens:
    """The tokens of one upstream.

    Attributes:
        login: the credentials, if there are any.

    Args:
        endpoint: the upstream's own; token hosts are reached in the same way.
        token_hosts: further hosts that may be asked for tokens, and get the credentials.
    """

    def __init__(
        self,
        http: Http,
        endpoint: Endpoint,
        token_hosts: frozenset[str],
        login: Login,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http = http
        self._endpoint = endpoint
        self._token_hosts = token_hosts
        self.login = login
        self._clock = clock
        self._tokens: BoundedCache[str, str] = BoundedCache(_MAX_SCOPES)
        # The credentials that the registry itself was last shown, by what it was sent.
        self._basic: dict[str, Credentials] = {}
        self._flights: SingleFlight[str] = SingleFlight()

    def cached(self, scope: str) -> str | None:
        """The Authorization to send with a request of this scope, if one is still good."""
        return self._tokens.get(scope, self._clock())

    async def answer(self, challenges: list[Challenge], scope: str, refused: str | None, *, public: bool = False) -> str | None:
        """The Authorization that answers a 401, or None if there is nothing to answer it with.

        Args:
            refused: the Authorization that the 401 was the answer to; it is not used again.
            public: upstream is on the Internet: a realm of its own choice is not looked for in the own network.

        Raises:
            UpstreamError: the token host failed, refused the credentials, or is none that may be asked.
            AccessDenied: the token host does not grant it.
        """
        for challenge in challenges:
            if challenge.scheme == "bearer":
                cached = self.cached(scope)
                if cached is not None and cached != refused:
                    return cached
                authorization, _ = await self._flights.run(scope, partial(self._fetch, challenge, scope, public))
                return authorization if authorization != refused else None
            if challenge.scheme == "basic":
                if refused is not None:
                    self.answered(scope, refused, 401)
                credentials = await self.login.credentials()
                if credentials is None:
                    return None
                self._basic = {credentials.basic(): credentials}
                return self._keep(scope, credentials.basic(), _SHORTEST)
        return None

    def answered(self, scope: str, authorization: str, status: int) -> None:
        """Note what the registry itself says to credentials (RFC 7617); raises CredentialsRefused if it refuses them."""
        credentials = self._basic.get(authorization)
        if credentials is None:
            return
        if status == 401:
            self._tokens.pop(scope)
            self.login.refused(credentials)
            raise _refusal(self._endpoint.url)
        self.login.accepted(credentials)

    async def _fetch(self, challenge: Challenge, scope: str, public: bool) -> str:
        realm = challenge.params.get("realm", "")
        if not realm_allowed(realm, str(self._endpoint.url), self._token_hosts):
            raise UpstreamProtocolError(
                f"{self._endpoint.url.host} names a token host that is neither its own nor in token_hosts: "
                f"{URL(realm).host if realm else 'none'}"
            )
        query = {"service": challenge.params["service"]} if "service" in challenge.params else {}
        url = URL(realm).update_query({**query, "scope": challenge.params.get("scope") or scope})
        guarded = public and not {url.host, url.authority} & self._token_hosts
        with translated(url):
            async with asyncio.timeout(self._http.limits.connect + self._http.limits.headers), self.login.turn():
                return self._keep(scope, *await self._hedged(url, guarded))

    async def _hedged(self, url: URL, guarded: bool) -> tuple[str, float]:
        """A token, asked for once more if no answer comes; but credentials that may be wrong are shown once at a time."""

        async def send(_: bool) -> Attempt[tuple[str, float]]:
            try:
                return Attempt(Place.TOKEN_HOST, await self._asked(url, guarded))
            except (UpstreamError, UpstreamRefusal) as error:
                return Attempt(Place.TOKEN_HOST, error=error)

        return (await hedged(send, self._http.limits.hedge_after, lambda: self.login.is_settled)).value()

    async def _asked(self, url: URL, guarded: bool) -> tuple[str, float]:
        try:
            return await self._asked_once(url, guarded)
        except CredentialsRefused:
            if not self.login.anonymous_fallback:
                raise
            return await self._asked_once(url, guarded)

    async def _asked_once(self, url: URL, guarded: bool) -> tuple[str, float]:
        credentials = await self.login.credentials()
        status, body = await self._sent(url, credentials, guarded)
        if status == 403 and credentials is not None and not await self._is_taken(url, credentials, guarded):
            status = 401
        self._check(status, url, credentials)
        if credentials is not None:
            self.login.accepted(credentials)
        return _parse(body, url)

    async def _is_taken(self, url: URL, credentials: Credentials, guarded: bool) -> bool:
        """Whether a 403 was about the scope: asked without one, a token host that takes the account gives a token.

        GitHub's answers 403 to an account that is wrong, too.
        """
        status, _ = await self._sent(url.without_query_params("scope"), credentials, guarded)
        if status == 200:
            self.login.accepted(credentials)
        return status not in (401, 403)

    async def _sent(self, url: URL, credentials: Credentials | None, guarded: bool) -> tuple[int, bytes]:
        headers = {"Authorization": credentials.basic()} if credentials else {}
        endpoint = self._endpoint
        sent = self._http.request("GET", url, headers, tls=endpoint.tls, proxy=endpoint.proxy, guarded=guarded)
        async with sent as response:
            return response.status, await read_bounded(response, _TOKEN_LIMIT)

    def _check(self, status: int, url: URL, credentials: Credentials | None) -> None:
        if status == 401 and credentials is not None:
            self.login.refused(credentials)
            raise _refusal(url)
        if status in (401, 403):
            raise AccessDenied(f"{url.host} has no token ({status}) for what was asked for")
        if status == 429:
            raise UpstreamRateLimited(f"{url.host} answers 429 to the request for a token")
        if status >= 500:
            raise UpstreamFailing(f"{url.host} answers {status} to the request for a token")
        if status != 200:
            raise UpstreamProtocolError(f"{url.host} answers {status} to the request for a token")

    def _keep(self, scope: str, authorization: str, lifetime: float) -> str:
        early = min(_EARLY, lifetime / 2)
        self._tokens.put(scope, authorization, expires=self._clock() + lifetime - early)
        return authorization

    async def close(self) -> None:
        """Stop fetching."""
        await self._flights.close()


def _refusal(url: URL) -> CredentialsRefused:
    return CredentialsRefused(f"{url.host} refuses a token: check username and password_file")


def _parse(body: bytes, url: URL) -> tuple[str, float]:
    try:
        answer = json.loads(body)
        token = answer.get("token") or answer.get("access_token")
        # Counted from receipt rather than from issued_at: proof against clocks that disagree.
        lifetime = max(float(answer.get("expires_in") or _SHORTEST), _SHORTEST)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UpstreamProtocolError(f"{url.host} answers the request for a token with something else") from error
    if not isinstance(token, str) or not token.isprintable() or not token.isascii():
        raise UpstreamProtocolError(f"{url.host} answers the request for a token without a token")
    return f"Bearer {token}", lifetime
