"""One upstream of a registry: sends a request with its token, follows redirects, and sorts the answers."""

from __future__ import annotations

import contextlib
import ssl
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

import aiohttp
from yarl import URL

from mirror.core.challenge import parse_challenges, pull_scope
from mirror.core.ratelimit import parse_rate_limit
from mirror.core.retry import parse_retry_after
from mirror.errors import (
    AccessDenied,
    MethodRefused,
    NotFound,
    UpstreamError,
    UpstreamFailing,
    UpstreamProtocolError,
    UpstreamRateLimited,
    UpstreamSizeChanged,
)
from mirror.metrics import Metrics
from mirror.tracing import request_id, via
from mirror.upstream import redirects
from mirror.upstream.credential_retry import CredentialRetry
from mirror.upstream.health import Health, TrackedBreaker
from mirror.upstream.http import Http, drain, peer
from mirror.upstream.login import Login
from mirror.upstream.prober import Prober
from mirror.upstream.receiver import Body
from mirror.upstream.tokens import Tokens


class RedirectRefused(UpstreamError):
    """The host that upstream redirected to refuses: most likely the signed URL has expired."""

    reason = "redirect"


@dataclass
class UpstreamRequest:
    """A request to a registry.

    Attributes:
        kind: for metrics and limits: manifest, blob, tags or referrers.
        repository: path of the repository, without the registry.
        rest: what follows the repository in the URL's path, for example `manifests/latest`.
        query: of the URL, encoded.
        elsewhere: it is now with a host that the upstream has redirected to.
    """

    kind: str
    repository: str
    rest: str
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    query: str = ""
    elsewhere: bool = False


class Upstream:
    """One upstream of one registry.

    Attributes:
        health: whether it is asked at all.

    Args:
        health: what is known of it already; None for nothing.
    """

    def __init__(
        self,
        registry: str,
        url: URL,
        http: Http,
        tokens: Tokens,
        metrics: Metrics,
        *,
        tls: ssl.SSLContext | bool = True,
        proxy: str | None = None,
        health: Health | None = None,
    ) -> None:
        self.registry = registry
        self.url = url
        self.name = url.authority
        self.health = health or Health(registry, self.name, metrics, self._watch)
        self._http = http
        self._tokens = tokens
        self._metrics = metrics
        self._tls = tls
        self._proxy = proxy
        # Whether its own host is on the Internet, by the address that was connected to.
        self._public = not redirects.is_inside(url.host or "")
        self._probers: dict[TrackedBreaker, Prober] = {}
        self._relogin = CredentialRetry(tokens.login)

    @property
    def state(self) -> str:
        """For people: what came of the last request."""
        return self.health.state

    @property
    def login(self) -> Login:
        """The account that it is used with, if any."""
        return self._tokens.login

    @property
    def hedge_after(self) -> float:
        """Seconds without an answer after which a second request may be sent beside the first."""
        return self._http.limits.hedge_after

    def slot(self, ask: UpstreamRequest) -> contextlib.AbstractAsyncContextManager[None]:
        """One of the limited connections, to be had before a request; raises UpstreamBusy if that takes too long.

        A question about a blob is short: it does not wait for the bodies of others.
        """
        return self._http.slot(blob=ask.kind == "blob" and ask.method == "GET")

    @contextlib.asynccontextmanager
    async def request(self, ask: UpstreamRequest) -> AsyncIterator[aiohttp.ClientResponse]:
        """Hand out the successful response to a request, wherever redirects led.

        Raises:
            UpstreamError: an outage, or an answer that makes no sense.
            UpstreamRefusal: upstream does not have it or does not grant it.
        """
        async with contextlib.AsyncExitStack() as stack:
            started = time.monotonic()
            ask.elsewhere = False
            try:
                response = await self._authorised(stack, ask)
                response = await self._followed(stack, ask, response)
            except UpstreamError as error:
                self._count(ask, error.reason, started)
                raise
            self._count(ask, str(response.status), started)
            try:
                self._raise_for(response, ask)
            except UpstreamError as error:
                error.elsewhere = response.url.origin() != self.url.origin()
                raise
            yield response

    def body(self, response: aiohttp.ClientResponse) -> Body:
        """The body of a response, to be received in large steps."""
        return self._http.body(response)

    async def probe(self) -> None:
        """Find out, for next to nothing, whether there is somebody again; raises UpstreamError if not."""
        url = self.url.joinpath("v2", "")
        async with self._http.request("GET", url, {}, tls=self._tls, proxy=self._proxy) as response:
            if response.status >= 500:
                raise UpstreamFailing(f"upstream {self.name} answers {response.status}")

    def start(self) -> None:
        """Probe from now on, at once if it is known to be out of order."""
        self.health.opened = self._watch
        for guard in self.health.probed_guards:
            if not guard.breaker.is_closed:
                self._watch(guard)

    async def rest(self) -> None:
        """Leave it to the one that takes its place to try the login, and to probe if it has taken over the health."""
        await self._relogin.close()
        if self.health.opened != self._watch:
            await self._stop_probing()

    async def close(self) -> None:
        """Stop probing and fetching tokens."""
        await self._stop_probing()
        await self._relogin.close()
        await self._tokens.close()

    def _watch(self, guard: TrackedBreaker) -> None:
        self._probers.setdefault(guard, Prober(self.health, guard, self.probe)).wake()

    async def _stop_probing(self) -> None:
        for prober in self._probers.values():
            await prober.close()

    def received(self, count: int) -> None:
        """Count bytes of bodies that came from this upstream."""
        self._metrics.upstream_bytes.labels(self.registry, self.name).inc(count)

    async def _authorised(self, stack: contextlib.AsyncExitStack, ask: UpstreamRequest) -> aiohttp.ClientResponse:
        try:
            return await self._answered(stack, ask)
        finally:
            # Also if it went on without the account.
            if self.login.problem is not None:
                self._relogin.wake(partial(self._log_in, replace(ask, method="HEAD")))

    async def _log_in(self, ask: UpstreamRequest) -> None:
        """Ask for something that the login was refused for; what upstream says of it does not matter."""
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._http.slot(blob=False))
            await self._answered(stack, ask)

    async def _answered(self, stack: contextlib.AsyncExitStack, ask: UpstreamRequest) -> aiohttp.ClientResponse:
        scope = pull_scope(ask.repository)
        authorization = self._tokens.cached(scope)
        response = await self._send(stack, ask, authorization)
        self._note_address(response)
        if response.status == 401:
            challenges = parse_challenges(response.headers.getall("WWW-Authenticate", []))
            await drain(response)
            with self.health.token():
                answer = await self._tokens.answer(challenges, scope, authorization, public=self._public)
            if answer is not None:
                response = await self._send(stack, ask, answer)
                self._tokens.answered(scope, answer, response.status)
        self.health.limits(
            parse_rate_limit(response.headers.get("ratelimit-limit")),
            parse_rate_limit(response.headers.get("ratelimit-remaining")),
        )
        return response

    def _note_address(self, response: aiohttp.ClientResponse) -> None:
        """Learn whether upstream is on the Internet; a proxy's address says nothing about that."""
        if self._proxy is None and (address := peer(response)) is not None:
            self._public = not redirects.is_inside(address)

    async def _send(
        self, stack: contextlib.AsyncExitStack, ask: UpstreamRequest, authorization: str | None
    ) -> aiohttp.ClientResponse:
        headers = dict(ask.headers)
        if name := request_id.get():
            headers["X-Request-Id"] = name
        if hops := via.get():
            headers["Via"] = hops
        if authorization is not None:
            headers["Authorization"] = authorization
        url = self.url.joinpath("v2", *ask.repository.split("/"), *ask.rest.split("/"))
        if ask.query:
            url = URL(f"{url}?{ask.query}", encoded=True)
        return await stack.enter_async_context(self._http.request(ask.method, url, headers, tls=self._tls, proxy=self._proxy))

    async def _followed(
        self, stack: contextlib.AsyncExitStack, ask: UpstreamRequest, response: aiohttp.ClientResponse
    ) -> aiohttp.ClientResponse:
        """Follow redirects by hand: without Authorization, and to nowhere that upstream has no business in."""
        hops = 0
        while response.status in redirects.STATUSES:
            hops += 1
            if hops > redirects.MAX_HOPS:
                raise UpstreamProtocolError(f"{self.name} redirects more than {redirects.MAX_HOPS} times")
            url = redirects.target(response.url, response.headers.get("Location"), self.url, public=self._public)
            await drain(response)
            response = await self._elsewhere(stack, ask, url)
        if hops and response.status in (400, 401, 403, 404, 410):
            raise RedirectRefused(f"{response.url.host}, to which {self.name} redirects, answers {response.status}")
        return response

    async def _elsewhere(self, stack: contextlib.AsyncExitStack, ask: UpstreamRequest, url: URL) -> aiohttp.ClientResponse:
        home = url.origin() == self.url.origin()
        ask.elsewhere = not home
        # Only Via: a circle may lead through a redirect, and a request's name is no foreign host's business.
        hops = {"Via": way} if (way := via.get()) else {}
        request = self._http.request(
            ask.method,
            url,
            {**ask.headers, **hops},
            tls=self._tls if home else True,
            proxy=self._proxy,
            guarded=self._public and not home,
        )
        try:
            return await stack.enter_async_context(request)
        except UpstreamError as error:
            error.elsewhere = not home
            raise

    def _raise_for(self, response: aiohttp.ClientResponse, ask: UpstreamRequest) -> None:
        status = response.status
        what = f"{ask.method} {self.registry}/{ask.repository} {ask.rest}"
        if status in (200, 206):
            return
        if status == 416:
            raise UpstreamSizeChanged(f"upstream {self.name} answers 416, it has no bytes there: {what}")
        if status == 404:
            raise NotFound(f"upstream {self.name} does not have it: {what}")
        if status in (401, 403):
            raise AccessDenied(f"upstream {self.name} does not grant it ({status}): {what}")
        if status == 429:
            wait = parse_retry_after(response.headers.get("Retry-After", ""), datetime.now(UTC))
            raise UpstreamRateLimited(f"upstream {self.name} limits the rate of pulls (429): {what}", retry_after=wait)
        if status >= 500:
            raise UpstreamFailing(f"upstream {self.name} answers {status}: {what}")
        if ask.method == "HEAD" and status in (400, 405):
            raise MethodRefused(f"upstream {self.name} does not answer HEAD ({status}): {what}")
        raise UpstreamProtocolError(f"upstream {self.name} answers {status}: {what}")

    def _count(self, ask: UpstreamRequest, status: str, started: float) -> None:
        self._metrics.upstream_requests.labels(self.registry, self.name, ask.kind, status).inc()
        self._metrics.upstream_duration.labels(self.registry, self.name, ask.kind).observe(time.monotonic() - started)
