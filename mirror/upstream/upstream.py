"""One upstream of a registry: asks it within a time limit, and follows whether it is in order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import TypeAlias, TypeVar

from mirror import spans
from mirror.core.digest import Digest
from mirror.errors import DigestMismatch, UpstreamBusy, UpstreamError, UpstreamFailing, UpstreamRefusal, UpstreamTimeout
from mirror.metrics import Metrics
from mirror.upstream.attempt import Attempt, Place, UpstreamRequest
from mirror.upstream.credential_retry import CredentialRetry
from mirror.upstream.exchange import Exchange, Route
from mirror.upstream.health import Health
from mirror.upstream.hedge import hedged
from mirror.upstream.http import Endpoint, Http
from mirror.upstream.login import Login
from mirror.upstream.prober import Prober
from mirror.upstream.tokens import Tokens
from mirror.upstream.tracked_breaker import TrackedBreaker

T = TypeVar("T")

Work: TypeAlias = Callable[[Exchange], Awaitable[T]]
"""Sends the request of an exchange and makes the result of the response."""


class Upstream:
    """One upstream of one registry.

    Attributes:
        health: whether it may be asked; outlives a reload.
        route: how it is reached.
    """

    def __init__(self, endpoint: Endpoint, http: Http, tokens: Tokens, health: Health, metrics: Metrics) -> None:
        self.health = health
        self.route = Route(endpoint, http, tokens, health, metrics)
        self._probers: dict[TrackedBreaker, Prober] = {}
        self._credential_retry = CredentialRetry(tokens.login)

    @property
    def name(self) -> str:
        """Host and port."""
        return self.route.name

    @property
    def state(self) -> str:
        """For people: the outcome of the last request."""
        return self.health.state

    @property
    def login(self) -> Login:
        """The account that it is used with, if any."""
        return self.route.tokens.login

    async def attempt(self, request: UpstreamRequest, work: Work[T], seconds: float) -> Attempt[T]:
        """Send a request, and once more beside the first if no answer comes; its health notes the outcome.

        Args:
            seconds: time limit, from the moment when there is a free connection.
        """
        await self.health.look_ahead(request.kind, request.method)
        try:
            permit = self.health.admit(request.kind, request.method)
        except UpstreamError as error:
            return Attempt(Place.REGISTRY, error=error)
        try:
            attempt = await self._hedged(request, work, seconds)
        except BaseException:
            self.health.release(permit)
            raise
        if attempt.error is not None:
            # Also after a refusal, by GET or by HEAD: an earlier redirect is no longer a grant.
            self.route.targets.forget(request)
        return self.health.note(permit, attempt)

    def note_body(self, request: UpstreamRequest, error: UpstreamError | None) -> None:
        """Note how the body of a blob ended. After an error the registry chooses anew where the rest comes from."""
        if error is not None:
            self.route.targets.forget(request)
        self.health.body_ended(error)

    def penalize(self, digest: Digest) -> None:
        """Note that the bytes of a blob were wrong: distrust everything that this upstream has redirected to."""
        self.route.targets.clear()
        self.health.body_ended(DigestMismatch(f"{self.name} has delivered wrong bytes of {digest}"))

    async def probe(self) -> None:
        """Find out at little cost whether it answers; raises UpstreamError if not."""
        endpoint = self.route.endpoint
        url = endpoint.url.joinpath("v2", "")
        async with self.route.http.request("GET", url, {}, tls=endpoint.tls, proxy=endpoint.proxy) as response:
            if response.status >= 500:
                raise UpstreamFailing(f"upstream {self.name} answers {response.status}")

    def start(self) -> None:
        """Probe from now on, at once if it is known to be out of order."""
        self.health.opened = self._watch
        for guard in self.health.probed_guards:
            if not guard.is_closed:
                self._watch(guard)

    async def hand_over(self) -> None:
        """Leave retrying the login, and probing, to the upstream that has taken over the health."""
        await self._credential_retry.close()
        if self.health.opened != self._watch:
            await self._stop_probing()

    async def close(self) -> None:
        """Stop probing and fetching tokens."""
        await self._stop_probing()
        await self._credential_retry.close()
        await self.route.tokens.close()

    async def _hedged(self, request: UpstreamRequest, work: Work[T], seconds: float) -> Attempt[T]:
        health = self.health
        async with contextlib.AsyncExitStack() as slot:
            try:
                # Before the clock starts: that all connections are in use is no fault of the upstream.
                with spans.wait("wait for a connection"):
                    await slot.enter_async_context(self._slot(request))
            except UpstreamBusy as error:
                return Attempt(Place.REGISTRY, error=error)
            deadline = asyncio.get_running_loop().time() + seconds

            async def send(second: bool) -> Attempt[T]:
                own_slot = self._slot(request) if second else slot.pop_all()
                return await self._send(request, work, own_slot, deadline)

            return await hedged(
                send,
                min(self.route.http.limits.hedge_after, seconds / 4),
                lambda: health.pull_quota.allows_second(request.kind, request.method, health.clock()),
            )

    async def _send(
        self, request: UpstreamRequest, work: Work[T], slot: contextlib.AbstractAsyncContextManager[object], deadline: float
    ) -> Attempt[T]:
        resources = contextlib.AsyncExitStack()
        exchange = Exchange(self.route, request, resources)
        try:
            # The connections end inside, since that is where the client's exceptions are translated.
            async with asyncio.timeout_at(deadline), resources:
                await resources.enter_async_context(slot)
                result = await work(exchange)
                kept = resources.pop_all()
        except asyncio.CancelledError:
            # Upstream may have counted it.
            exchange.count("cancelled")
            raise
        except TimeoutError as error:
            exchange.count(UpstreamTimeout.reason)
            late = UpstreamTimeout(f"{self.name} did not answer in time")
            late.__cause__ = error
            return Attempt(exchange.place, error=late)
        except (UpstreamError, UpstreamRefusal) as error:
            return Attempt(exchange.place, error=error)
        finally:
            self._retry_credentials(request)
        return Attempt(exchange.place, result, resources=kept)

    def _slot(self, request: UpstreamRequest) -> contextlib.AbstractAsyncContextManager[None]:
        """One of the limited connections; raises UpstreamBusy if none becomes free.

        A HEAD of a blob is short: it does not wait for the bodies of others.
        """
        return self.route.http.slot(blob=request.kind == "blob" and request.method == "GET")

    def _retry_credentials(self, request: UpstreamRequest) -> None:
        """Retry in the background credentials that were refused, also if the request succeeded without them."""
        if self.login.problem is not None:
            self._credential_retry.wake(partial(self._log_in, replace(request, method="HEAD")))

    async def _log_in(self, request: UpstreamRequest) -> None:
        """Send a request for which the credentials were refused; its response does not matter."""
        async with contextlib.AsyncExitStack() as resources:
            await resources.enter_async_context(self.route.http.slot(blob=False))
            await Exchange(self.route, request, resources).authorized()

    def _watch(self, guard: TrackedBreaker) -> None:
        self._probers.setdefault(guard, Prober(self.health, guard, self.probe)).wake()

    async def _stop_probing(self) -> None:
        for prober in self._probers.values():
            await prober.close()
