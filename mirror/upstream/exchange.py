"""One request to an upstream: sends it with a token, follows redirects, and classifies the response."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http import HTTPStatus

import aiohttp
from yarl import URL

from mirror import spans
from mirror.core.challenge import parse_challenges, pull_scope
from mirror.core.pull_quota import parse_rate_limit
from mirror.core.retry import parse_retry_after
from mirror.errors import (
    AccessDenied,
    MethodRefused,
    NotFound,
    UpstreamError,
    UpstreamFailing,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamRefusal,
    UpstreamSizeChanged,
    UpstreamUnreachable,
)
from mirror.metrics import Metrics
from mirror.tracing import request_id, upstream_note, via
from mirror.upstream import redirects
from mirror.upstream.attempt import Attempt, Place, UpstreamRequest
from mirror.upstream.health import Health
from mirror.upstream.http import Endpoint, Http, drain, read_bounded
from mirror.upstream.receiver import Body
from mirror.upstream.redirects import RedirectTargets
from mirror.upstream.tokens import Tokens

# Answers of a redirect's target that say nothing about the registry: most likely the signed URL has expired.
_TARGET_REFUSALS = frozenset({400, 401, 403, 404, 410})


# Registries without the referrers API, which answer its path other than with the 404 of OCI distribution-spec, Listing Referrers.
_NO_REFERRERS = frozenset({400, 405, 406, 501})

_MAX_SOURCE = 100

_STATUSES = frozenset(HTTPStatus)


def _label(status: int) -> str:
    """The value of a label for a status: one that HTTP does not define, which upstream may make up, is like `4xx`."""
    return str(status) if status in _STATUSES else f"{status // 100}xx"


class RedirectRefused(UpstreamError):
    """The host that upstream redirects to refuses."""

    reason = "redirect"


@dataclass(frozen=True)
class Route:
    """The way to one upstream, and what is known of it."""

    endpoint: Endpoint
    http: Http
    tokens: Tokens
    health: Health
    metrics: Metrics
    targets: RedirectTargets = field(default_factory=RedirectTargets, init=False)

    @property
    def name(self) -> str:
        """Host and port."""
        return self.endpoint.url.authority


class Exchange:
    """Sends one request and classifies the response.

    Attributes:
        place: the host that the request is with.
        resources: holds the connections until it is closed.
    """

    def __init__(self, route: Route, request: UpstreamRequest, resources: contextlib.AsyncExitStack) -> None:
        self.place = Place.REGISTRY
        self.resources = resources
        self._route = route
        self._request = request
        # When a request was sent that is not counted yet.
        self._began: float | None = None

    @property
    def name(self) -> str:
        """Host and port of the upstream."""
        return self._route.name

    async def response(self) -> aiohttp.ClientResponse:
        """The successful response, wherever redirects lead; its connection is one of the resources.

        Raises:
            UpstreamError: an outage, or a response that breaks the protocol.
            UpstreamRefusal: upstream does not have it or does not grant it.
        """
        self._began = time.monotonic()
        if (note := upstream_note.get()) is not None:
            note.name = self.name
        with self._counted():
            response = await self._from_known_target() or await self._followed(await self.authorized())
        self.count(_label(response.status))
        self._raise_for(response)
        return response

    async def authorized(self) -> aiohttp.ClientResponse:
        """The registry's response, redirects included, with a token if it requires one."""
        route, scope = self._route, pull_scope(self._request.repository)
        authorization, ahead = route.tokens.cached(scope), None
        if authorization is None and route.tokens.is_required:
            ahead = await self._fetch_ahead(scope)
            authorization = ahead.result
        response = await self._send(authorization)
        route.endpoint.note_address(response)
        route.health.time_of_day.note(response.headers)
        route.health.quota_source = response.headers.get("docker-ratelimit-source", "")[:_MAX_SOURCE] or route.health.quota_source
        if response.status == 401:
            response = await self._answer_challenge(response, scope, authorization, ahead)
        elif authorization is None and response.ok:
            route.tokens.learn([], scope)
        elif ahead is not None and authorization is not None:
            route.tokens.answered(authorization, response.status)
        route.health.limits(
            parse_rate_limit(response.headers.get("ratelimit-limit")),
            parse_rate_limit(response.headers.get("ratelimit-remaining")),
        )
        return response

    async def _fetch_ahead(self, scope: str) -> Attempt[str | None]:
        """A token fetched before the registry has required one. An error counts only if it does."""
        try:
            with self._at_token_host():
                return Attempt(Place.TOKEN_HOST, await self._route.tokens.fetch_ahead(scope))
        except (UpstreamError, UpstreamRefusal) as error:
            self.place = Place.REGISTRY
            return Attempt(Place.TOKEN_HOST, error=error)

    async def _answer_challenge(
        self, response: aiohttp.ClientResponse, scope: str, authorization: str | None, ahead: Attempt[str | None] | None
    ) -> aiohttp.ClientResponse:
        """Send the request again with another token, unless one that was just fetched is what a 401 asks for."""
        tokens = self._route.tokens
        challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
        if ahead is not None and tokens.has_answered(challenges, scope):
            if ahead.error is not None:
                self.place = ahead.place
            ahead.value()
            return response
        if authorization is None:
            tokens.learn(challenges, scope)
        await drain(response)
        async with tokens.one_at_a_time(challenges):
            with self._at_token_host():
                answer = await tokens.answer(challenges, scope, authorization)
            if answer is None:
                return response
            with tokens.shown(answer):
                response = await self._send(answer)
                tokens.answered(answer, response.status)
        return response

    def body(self, response: aiohttp.ClientResponse) -> Body:
        """The body of a response, to be received in large steps."""
        return self._route.http.body(response)

    async def content(self, response: aiohttp.ClientResponse, limit: int) -> bytes:
        """A whole small body; its bytes are counted also if it ends early. Raises like `read_bounded`."""
        try:
            return await read_bounded(response, limit)
        finally:
            self.received(response.content.total_bytes)

    def received(self, count: int) -> None:
        """Count bytes of bodies."""
        route = self._route
        route.health.received += count
        route.metrics.upstream_bytes.labels(route.health.registry, route.name).inc(count)
        if self._request.kind == "blob":
            route.metrics.bytes_from_upstreams.inc(count)

    @contextlib.contextmanager
    def _at_token_host(self) -> Iterator[None]:
        """Attribute failures inside the context to the token host."""
        self.place = Place.TOKEN_HOST
        with self._route.health.token():
            yield
        self.place = Place.REGISTRY

    async def _send(self, authorization: str | None) -> aiohttp.ClientResponse:
        endpoint, request = self._route.endpoint, self._request
        headers = dict(request.headers)
        if name := request_id.get():
            headers["X-Request-Id"] = name
        if hops := via.get():
            headers["Via"] = hops
        if authorization is not None:
            headers["Authorization"] = authorization
        url = request.url(endpoint.url)
        with spans.request_to(f"{request.method} {request.kind}", url.host, request.method) as span:
            if span is not None:
                headers["traceparent"] = span.traceparent
            sent = self._route.http.request(request.method, url, headers, tls=endpoint.tls, proxy=endpoint.proxy)
            return _noted(await self.resources.enter_async_context(sent), span)

    async def _from_known_target(self) -> aiohttp.ClientResponse | None:
        """The response of the target of an earlier redirect; None if no target can be used again."""
        route = self._route
        url = route.targets.get(self._request, route.health.clock()) if route.health.own.breaker.is_closed else None
        if url is None:
            return None
        try:
            response = await self._redirected(url)
            if response.status in (200, 206):
                return response
            await drain(response)
        except UpstreamUnreachable:
            # The registry may know a host that answers.
            pass
        route.targets.forget(self._request)
        self.place = Place.REGISTRY
        return None

    async def _followed(self, response: aiohttp.ClientResponse) -> aiohttp.ClientResponse:
        """Follow redirects: without Authorization, and only to where upstream may lead."""
        route, first, hops = self._route, response, 0
        while response.status in redirects.STATUSES:
            hops += 1
            if hops > redirects.MAX_HOPS:
                raise UpstreamProtocolError(f"{route.name} redirects more than {redirects.MAX_HOPS} times")
            location = response.headers.get("Location")
            url = redirects.target(response.url, location, route.endpoint.url, public=route.endpoint.is_public)
            await drain(response)
            response = await self._redirected(url)
        if hops and response.status in _TARGET_REFUSALS:
            raise RedirectRefused(f"{response.url.host}, to which {route.name} redirects, answers {response.status}")
        if hops == 1 and response.status in (200, 206):
            route.targets.keep(self._request, first, url, route.health.clock())
        return response

    async def _redirected(self, url: URL) -> aiohttp.ClientResponse:
        route = self._route
        home = url.origin() == route.endpoint.url.origin()
        self.place = Place.REGISTRY if home else Place.REDIRECT_TARGET
        # Only Via: a loop may lead through a redirect, but the ids of a request and its trace are not for another host.
        hops = {"Via": way} if (way := via.get()) else {}
        request = route.http.request(
            self._request.method,
            url,
            {**self._request.headers, **hops},
            tls=route.endpoint.tls if home else True,
            proxy=route.endpoint.proxy,
            guarded=route.endpoint.is_public and not home,
        )
        with spans.request_to(f"{self._request.method} {self._request.kind} redirected", url.host, self._request.method) as span:
            return _noted(await self.resources.enter_async_context(request), span)

    def _raise_for(self, response: aiohttp.ClientResponse) -> None:
        status, request, name = response.status, self._request, self._route.name
        what = f"{request.method} {self._route.health.registry}/{request.repository} {request.rest}"
        if status in (200, 206):
            return
        if status == 416:
            raise UpstreamSizeChanged(f"upstream {name} answers 416, it has no bytes there: {what}")
        if status == 404 and not request.repository:
            raise UpstreamProtocolError(f"upstream {name} answers 404 to /v2/: it is no registry")
        if status == 404 or (request.kind == "referrers" and status in _NO_REFERRERS):
            raise NotFound(f"upstream {name} does not have it: {what}")
        if status in (401, 403):
            raise AccessDenied(f"upstream {name} does not grant it ({status}): {what}")
        if status == 429:
            wait = parse_retry_after(response.headers.get("Retry-After", ""), datetime.now(UTC))
            raise UpstreamRateLimited(f"upstream {name} limits the rate of pulls (429): {what}", retry_after=wait)
        if status >= 500:
            raise UpstreamFailing(f"upstream {name} answers {status}: {what}")
        if request.method == "HEAD" and status in (400, 405):
            raise MethodRefused(f"upstream {name} does not answer HEAD ({status}): {what}")
        raise UpstreamProtocolError(f"upstream {name} answers {status}: {what}")

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except UpstreamError as error:
            self.count(error.reason)
            raise

    def count(self, status: str) -> None:
        """Count the request, unless it is counted or was not sent.

        Args:
            status: of the response, or a word for why there is none.
        """
        if self._began is None:
            return
        seconds, self._began = time.monotonic() - self._began, None
        route, kind = self._route, self._request.kind
        route.metrics.upstream_requests.labels(route.health.registry, route.name, kind, status).inc()
        route.metrics.upstream_duration.labels(route.health.registry, route.name, kind).observe(seconds)


def _noted(response: aiohttp.ClientResponse, span: spans.Span | None) -> aiohttp.ClientResponse:
    if span is not None:
        span.set(http__response__status_code=response.status)
    return response
