"""Admission of requests at an address: limits, networks, host names and credentials, before a request is interpreted."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from time import perf_counter

import structlog
from aiohttp import web

from mirror import demand
from mirror.core.counts import CountTable
from mirror.core.hosts import HostNames
from mirror.listener import oci_errors
from mirror.listener.access_log import USER, AccessLog
from mirror.listener.basic_auth import BasicAuthenticator, TooManyChecks
from mirror.listener.connections import Admission, Bounds, ConnectionLimiter, Peer, Refusal
from mirror.listener.inline import InlineRequest
from mirror.listener.request_spans import RequestSpans
from mirror.listener.responses import Respond
from mirror.metrics import Metrics
from mirror.throttled_log import ThrottledLog
from mirror.tracing import RequestIds, request_id

log = structlog.get_logger(__name__)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

# Accepted Host headers that are remembered; further ones are checked each time.
_MAX_NAMES = 256
# Services upstream report pushes below this path; a secret in the path takes the place of credentials.
WEBHOOK_PREFIX = "/webhooks/dockerhub/"

# Password checks of one address at a time, so that guessing does not block other clients.
_MAX_CHECKS = 4

_TOO_MANY_REQUESTS = Refusal("requests", oci_errors.too_many("requests at a time from one address"))
_TOO_MANY_CHECKS = Refusal("credentials", oci_errors.too_many("passwords at a time to be checked"))
_WRONG = Refusal("credentials", oci_errors.unauthorized("user name or password is wrong"))
_MISSING = Refusal("credentials", oci_errors.unauthorized("user name and password are wanted"))


@dataclass(frozen=True, slots=True)
class Handlers:
    """The handlers of an address.

    Attributes:
        name: the section of the configuration that controls access to it.
        handler: handles admitted requests.
        webhook: handles requests to webhooks, and checks their credentials itself.
        respond: builds the response to a refused request.
        any_host: prefixes of paths that are served under any Host.
        find_inline: returns the request that has a head, if it was answered before.
        access_log: logs the requests.
        spans: traces the requests; None if they are not traced.
    """

    name: str
    handler: Handler
    webhook: Handler
    respond: Respond
    any_host: tuple[str, ...] = (WEBHOOK_PREFIX,)
    find_inline: Callable[[bytes], InlineRequest | None] = lambda _: None
    access_log: AccessLog = field(default_factory=AccessLog)
    spans: RequestSpans | None = None


class AdmissionMiddleware:
    """Passes admitted requests to a handler, and refuses others.

    Attributes:
        ids: names the requests.
        in_progress: admitted requests that are not answered yet.
    """

    def __init__(self, handlers: Handlers, metrics: Metrics, counts: CountTable) -> None:
        self.limiter = ConnectionLimiter(self._count, counts, handlers.name)
        self.handlers = handlers
        self.in_progress = 0
        self._most_requests = 0
        self._handler = handlers.handler
        self._find_inline = handlers.find_inline
        self._access_log = handlers.access_log
        self._spans = handlers.spans
        self._metrics = metrics
        self._misdirected = Refusal("host", oci_errors.misdirected(f"{handlers.name}.hosts"))
        self._hosts: HostNames | None = None
        self._names: set[str | None] = set()
        self.ids = RequestIds()
        self._passwords: BasicAuthenticator | None = None
        self._anonymous = True
        self._log = ThrottledLog(log)

    def configure(
        self,
        bounds: Bounds,
        hosts: HostNames | None = None,
        passwords: BasicAuthenticator | None = None,
        *,
        anonymous: bool = True,
    ) -> None:
        """Change the rules of admission.

        Args:
            hosts: the accepted Host headers; None for any.
            passwords: None if there are no users; credentials are then ignored.
            anonymous: whether requests without credentials are admitted.
        """
        self.limiter.configure(bounds)
        self._most_requests = bounds.requests_per_address
        self._hosts = hosts
        self._names = set()
        self._passwords, self._anonymous = passwords, anonymous

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Handle one request."""
        # All requests of a connection have one context: every request needs its own identifier.
        request_id.set(self.ids.name(request.headers.get("X-Request-Id")))
        return await self._logged(request) if self._spans is None else await self._spans.watch(request, self._logged)

    async def _logged(self, request: web.BaseRequest) -> web.StreamResponse:
        if self._access_log.logs_any:
            return await self._access_log.watch(request, self._admit)
        return await self._admit(request)

    async def _admit(self, request: web.BaseRequest) -> web.StreamResponse:
        # `cast` is a call, and this is the hot path.
        admission: Admission = request.protocol.admission  # type: ignore[attr-defined]
        peer = admission.peer
        refusal = admission.refusal or admission.source.refusal
        if refusal is not None:
            response = self._refuse(refusal)
            response.force_close()
            return response
        if not peer.counts.requests.enter(self._most_requests):
            self._count(_TOO_MANY_REQUESTS, admission.source.address)
            return self._refuse(_TOO_MANY_REQUESTS)
        demand.client.set(peer.counts)
        self.in_progress += 1
        try:
            if request.headers.get("Host") not in self._names and not self._is_called_right(request):
                self._count(self._misdirected, admission.source.address, host=request.headers["Host"][:100])
                return self._refuse(self._misdirected)
            if request.raw_path.startswith(WEBHOOK_PREFIX):
                return await self.handlers.webhook(request)
            if self._passwords is not None:
                refusal = await self._unknown(self._passwords, request, peer)
                if refusal is not None:
                    self._count(refusal, admission.source.address)
                    return self._refuse(refusal)
            return await self._handler(request)
        finally:
            self.in_progress -= 1
            peer.counts.requests.leave()
            if not peer.connections:
                self.limiter.forget(peer)

    def respond_inline(self, admission: Admission, head: bytes) -> bytes | None:
        """Return the whole response to a request that was answered before; None if it has to be parsed and handled.

        A request that has to be refused is handled, too. Nothing is counted as in progress: the response exists on return.
        """
        request, source = self._find_inline(head), admission.source
        if request is None or request.host not in self._names or (admission.refusal or source.refusal) is not None:
            return None
        # A remembered request has no credentials.
        if self._passwords is not None and not self._anonymous:
            return None
        most = self._most_requests
        if most and admission.peer.counts.requests.total >= most:
            return None
        started = perf_counter() if self._access_log.logs_all else 0.0
        rendered = request.respond(source.address)
        if rendered is None:
            return None
        identifier = self.ids.name(None)
        if self._access_log.logs_all:
            self._access_log.inline(request, rendered, source.address, identifier, started)
        return rendered.whole(identifier)

    def _is_called_right(self, request: web.BaseRequest) -> bool:
        name = request.headers.get("Host")
        if self._hosts is not None and not self._hosts.include(name):
            return request.raw_path.startswith(self.handlers.any_host)
        if len(self._names) < _MAX_NAMES:
            self._names.add(name)
        return True

    async def _unknown(self, passwords: BasicAuthenticator, request: web.BaseRequest, peer: Peer) -> Refusal | None:
        """Return the reason why authentication fails, or None."""
        header = request.headers.get("Authorization")
        if header is None:
            return None if self._anonymous else _MISSING
        right = passwords.known(header)
        if right is None:
            costs = 0 if passwords.is_being_checked(header) else 1
            if costs and peer.checks >= _MAX_CHECKS:
                return _TOO_MANY_CHECKS
            peer.checks += costs
            try:
                right = await passwords.check(header)
            except TooManyChecks:
                return _TOO_MANY_CHECKS
            finally:
                peer.checks -= costs
        request[USER] = right
        return None if right else _WRONG

    def _refuse(self, refusal: Refusal) -> web.StreamResponse:
        return self.handlers.respond(refusal.problem, request_id.get())

    def _count(self, refusal: Refusal, client: str, **details: object) -> None:
        self._metrics.refused.labels(refusal.reason).inc()
        reason, status = refusal.reason, refusal.problem.status
        self._log.log("info", "client_refused", reason, reason=reason, client=client, status=status, **details)
