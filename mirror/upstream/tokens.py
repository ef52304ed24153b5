"""The tokens of one upstream: fetched once per scope, shared by all requests, renewed before they expire.

The flow is that of the distribution token specification: a 401 names realm, service and scope; the realm is asked, with the
configured credentials if it may have them; the request is repeated once with the token. The challenge of a registry is kept, so
that later requests for other repositories fetch their token first and need no 401.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass, field
from functools import partial

from yarl import URL

from mirror import spans
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
from mirror.upstream.http import Endpoint, Http, read_bounded
from mirror.upstream.login import Credentials, Login
from mirror.upstream.translation import translated

_MAX_RESPONSE_BYTES = 1 << 20
# The specification's default and least lifetime of a token.
_MIN_LIFETIME_S = 60.0
# So long before its end a token is used no more.
_MARGIN_S = 30.0
# A use in the rest of its life, behind this part of it, renews a token.
_RENEWED_AFTER = 2 / 3
_MAX_SCOPES = 10_000


@dataclass(slots=True)
class _Token:
    """An Authorization.

    Attributes:
        challenge: what it answers.
        renewed_from: the time from which a use renews it.
    """

    authorization: str = field(repr=False)
    challenge: Challenge
    renewed_from: float


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
        self.clock = clock
        self._tokens: BoundedCache[str, _Token] = BoundedCache(_MAX_SCOPES)
        # The credentials that the registry itself was last shown, by what it was sent.
        self._basic: dict[str, Credentials] = {}
        # The challenge of requests without a token, as far as it is the same for each repository.
        self._challenge: Challenge | None = None
        # Whether they are answered by the credentials themselves.
        self._requires_basic = False
        self._flights: SingleFlight[str] = SingleFlight()

    def cached(self, scope: str) -> str | None:
        """The Authorization of a scope, if there is one that is still good."""
        now = self.clock()
        token = self._tokens.get(scope, now)
        if token is None:
            return None
        if now >= token.renewed_from:
            # Once: if that fails, the first request after its end fetches another one.
            token.renewed_from = math.inf
            self._flights.start(scope, partial(self._fetch, token.challenge, scope))
        return token.authorization

    @property
    def is_required(self) -> bool:
        """Whether the registry is known to challenge a request without a token, or without credentials that it accepts."""
        return self._challenge is not None or (self._requires_basic and self.login.is_settled)

    async def fetch_ahead(self, scope: str) -> str | None:
        """The Authorization of a scope, fetched without a challenge; None if none is required. Raises like `answer`."""
        challenge = self._challenge
        if challenge is None:
            return await self._answer_basic(None) if self._requires_basic else None
        return await self._fetched(challenge, scope)

    def learn(self, challenges: list[Challenge], scope: str) -> None:
        """Note the challenges of a response to a request without an Authorization, none if it was not a 401."""
        bearer = next((challenge for challenge in challenges if challenge.scheme == "bearer"), None)
        predictable = bearer is not None and bearer.params.get("scope") in (None, scope)
        self._challenge = _for_any_scope(bearer) if bearer is not None and predictable else None
        self._requires_basic = bearer is None and any(challenge.scheme == "basic" for challenge in challenges)

    async def answer(self, challenges: list[Challenge], scope: str, refused: str | None) -> str | None:
        """The Authorization that answers a 401, or None if there is nothing to answer it with.

        Args:
            refused: the Authorization that the 401 answered; it is not used again.

        Raises:
            UpstreamError: the token host failed, refused the credentials, or is none that may be asked.
            AccessDenied: the token host does not grant it.
        """
        for challenge in challenges:
            if challenge.scheme == "bearer":
                cached = self.cached(scope)
                if cached is not None and cached != refused:
                    return cached
                authorization = await self._fetched(challenge, scope)
                return authorization if authorization != refused else None
            if challenge.scheme == "basic":
                return await self._answer_basic(refused)
        return None

    def has_answered(self, challenges: list[Challenge], scope: str) -> bool:
        """Whether `fetch_ahead` answers these challenges: another token would bring no other rights."""
        return any(
            challenge.scheme == "bearer"
            and challenge.params.get("scope") in (None, scope)
            and _for_any_scope(challenge) == self._challenge
            for challenge in challenges
        )

    def one_at_a_time(self, challenges: list[Challenge]) -> AbstractAsyncContextManager[None]:
        """Admit one request at a time that shows the registry itself credentials which may be wrong (see `answer`)."""
        scheme = next((challenge.scheme for challenge in challenges if challenge.scheme in ("bearer", "basic")), None)
        return self.login.serialized() if scheme == "basic" else contextlib.nullcontext()

    def shown(self, authorization: str) -> AbstractContextManager[None]:
        """Send an Authorization to the registry inside the context, and note what `answered` says."""
        return self.login.shown(self._basic.get(authorization))

    def answered(self, authorization: str, status: int) -> None:
        """Note the registry's own response to credentials (RFC 7617); raises CredentialsRefused if it refuses them."""
        credentials = self._basic.get(authorization)
        if credentials is None:
            return
        if status == 401:
            self.login.refused(credentials)
            raise _refusal(self._endpoint.url)
        if status < 500 and status != 429:
            self.login.accepted(credentials)

    async def close(self) -> None:
        """Stop fetching."""
        await self._flights.close()

    async def _answer_basic(self, refused: str | None) -> str | None:
        """The credentials themselves. They are read each time: others may be right since, or these be refused."""
        if refused is not None:
            self.answered(refused, 401)
        credentials = await self.login.credentials()
        if credentials is None:
            return None
        self._basic = {credentials.basic(): credentials}
        return credentials.basic()

    async def _fetched(self, challenge: Challenge, scope: str) -> str:
        return (await self._flights.run(scope, partial(self._fetch, challenge, scope)))[0]

    async def _fetch(self, challenge: Challenge, scope: str) -> str:
        realm = challenge.params.get("realm", "")
        if not realm_allowed(realm, str(self._endpoint.url), self._token_hosts):
            raise UpstreamProtocolError(
                f"{self._endpoint.url.host} names a token host that is neither its own nor in token_hosts: "
                f"{URL(realm).host if realm else 'none'}"
            )
        query = {"service": challenge.params.get("service"), "scope": challenge.params.get("scope") or scope}
        url = URL(realm).update_query({name: value for name, value in query.items() if value})
        with translated(url):
            async with asyncio.timeout(self._http.limits.connect + self._http.limits.headers), self.login.serialized():
                authorization, lifetime = await self._hedged(url)
        return self._keep(scope, authorization, lifetime, challenge)

    async def _hedged(self, url: URL) -> tuple[str, float]:
        """A token, asked for once more if no answer comes; but credentials that may be wrong are shown once at a time."""

        async def send(_: bool) -> Attempt[tuple[str, float]]:
            try:
                return Attempt(Place.TOKEN_HOST, await self._request(url))
            except (UpstreamError, UpstreamRefusal) as error:
                return Attempt(Place.TOKEN_HOST, error=error)

        return (await hedged(send, self._http.limits.hedge_after, lambda: self.login.is_settled)).value()

    async def _request(self, url: URL) -> tuple[str, float]:
        credentials = await self.login.credentials()
        try:
            return await self._request_with(credentials, url)
        except CredentialsRefused:
            if not self.login.anonymous_fallback:
                raise
            return await self._request_with(None, url)

    async def _request_with(self, credentials: Credentials | None, url: URL) -> tuple[str, float]:
        with self.login.shown(credentials):
            status, body = await self._send(url, credentials)
            if status == 403 and credentials is not None and not await self._is_accepted(url, credentials):
                status = 401
            self._check(status, url, credentials)
            if credentials is not None:
                self.login.accepted(credentials)
        return _parse(body, url)

    async def _is_accepted(self, url: URL, credentials: Credentials) -> bool:
        """Whether a 403 was about the scope: asked without one, a token host that accepts the account gives a token.

        GitHub's token host answers 403 to a wrong account, too.
        """
        status, _ = await self._send(url.without_query_params("scope"), credentials)
        if status == 200:
            self.login.accepted(credentials)
        return status not in (401, 403)

    async def _send(self, url: URL, credentials: Credentials | None) -> tuple[int, bytes]:
        headers = {"Authorization": credentials.basic()} if credentials else {}
        endpoint = self._endpoint
        # A realm that a public upstream has chosen must not lead into the own network.
        guarded = endpoint.is_public and not {url.host, url.authority} & self._token_hosts
        sent = self._http.request("GET", url, headers, tls=endpoint.tls, proxy=endpoint.proxy, guarded=guarded)
        with spans.request_to("GET token", url.host, "GET") as span:
            async with sent as response:
                if span is not None:
                    span.set(http__response__status_code=response.status)
                return response.status, await read_bounded(response, _MAX_RESPONSE_BYTES)

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

    def _keep(self, scope: str, authorization: str, lifetime: float, challenge: Challenge) -> str:
        now, usable = self.clock(), lifetime - min(_MARGIN_S, lifetime / 2)
        self._tokens.put(scope, _Token(authorization, challenge, now + _RENEWED_AFTER * usable), expires=now + usable)
        return authorization


def _for_any_scope(challenge: Challenge) -> Challenge:
    """The realm and service of a challenge."""
    return Challenge("bearer", {name: challenge.params[name] for name in ("realm", "service") if name in challenge.params})


def _refusal(url: URL) -> CredentialsRefused:
    return CredentialsRefused(f"{url.host} refuses a token: check username and password_file")


def _parse(body: bytes, url: URL) -> tuple[str, float]:
    try:
        answer = json.loads(body)
        token = answer.get("token") or answer.get("access_token")
        # Counted from receipt rather than from issued_at: clocks may disagree.
        lifetime = max(float(answer.get("expires_in") or _MIN_LIFETIME_S), _MIN_LIFETIME_S)
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise UpstreamProtocolError(f"{url.host} answers the request for a token with something else") from error
    if not isinstance(token, str) or not token.isprintable() or not token.isascii():
        raise UpstreamProtocolError(f"{url.host} answers the request for a token without a token")
    return f"Bearer {token}", lifetime
