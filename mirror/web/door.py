"""The door of the registry address: who may pass, before anything is made of what they ask for."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web

from mirror.metrics import Metrics
from mirror.tracing import RequestIds
from mirror.web import hooks, problems
from mirror.web.passwords import Passwords, TooManyChecks
from mirror.web.peers import Admission, Bounds, Peer, Peers, Refusal
from mirror.web.responses import ReadyResponse, problem_response

log = structlog.get_logger(__name__)

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

# Of one address; whoever guesses passwords leaves room for others.
_MOST_CHECKS = 4
# A flood of refusals is one line in the log in this time, in seconds.
_LOG_EVERY = 1.0

_TOO_MANY_REQUESTS = Refusal("requests", problems.too_many("requests at a time from one address"))
_TOO_MANY_CHECKS = Refusal("credentials", problems.too_many("passwords at a time to be checked"))
_WRONG = Refusal("credentials", problems.unauthorized("user name or password is wrong"))
_MISSING = Refusal("credentials", problems.unauthorized("user name and password are wanted"))


class Door:
    """Lets requests through to `handler`, or answers why not.

    Args:
        webhook: answers what is sent to webhooks; it looks at their credentials itself.

    Attributes:
        in_progress: requests that have been let through.
    """

    def __init__(self, handler: Handler, metrics: Metrics, webhook: Handler) -> None:
        self.peers = Peers(self._count)
        self.in_progress = 0
        self._most_requests: float = math.inf
        self._handler = handler
        self._metrics = metrics
        self._webhook = webhook
        self._ids = RequestIds()
        self._passwords: Passwords | None = None
        self._anonymous = True
        self._logged: dict[str, float] = {}

    def configure(self, bounds: Bounds, passwords: Passwords | None, *, anonymous: bool) -> None:
        """Change who may pass.

        Args:
            passwords: None if nobody has one; what clients send is then not looked at.
            anonymous: whether requests without credentials pass.
        """
        self.peers.configure(bounds)
        self._most_requests = bounds.requests_per_address or math.inf
        self._passwords, self._anonymous = passwords, anonymous

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        # No cast: it is a call, and every hit comes by here.
        admission: Admission = request.protocol.admission  # type: ignore[attr-defined]
        peer = admission.peer
        refusal = admission.refusal or admission.source.refusal
        if refusal is not None:
            response = self._refuse(request, refusal)
            response.force_close()
            return response
        if peer.requests >= self._most_requests:
            self._count(_TOO_MANY_REQUESTS, admission.source.address)
            return self._refuse(request, _TOO_MANY_REQUESTS)
        peer.requests += 1
        self.in_progress += 1
        try:
            if request.raw_path.startswith(hooks.PREFIX):
                return await self._webhook(request)
            if self._passwords is not None:
                refusal = await self._unknown(self._passwords, request, peer)
                if refusal is not None:
                    self._count(refusal, admission.source.address)
                    return self._refuse(request, refusal)
            return await self._handler(request)
        finally:
            self.in_progress -= 1
            peer.requests -= 1

    async def _unknown(self, passwords: Passwords, request: web.BaseRequest, peer: Peer) -> Refusal | None:
        """Why somebody may not pass who says to be, or does not say to be, one of the users."""
        header = request.headers.get("Authorization")
        if header is None:
            return None if self._anonymous else _MISSING
        right = passwords.known(header)
        if right is None:
            costs = 0 if passwords.is_being_checked(header) else 1
            if costs and peer.checks >= _MOST_CHECKS:
                return _TOO_MANY_CHECKS
            peer.checks += costs
            try:
                right = await passwords.check(header)
            except TooManyChecks:
                return _TOO_MANY_CHECKS
            finally:
                peer.checks -= costs
        return None if right else _WRONG

    def _refuse(self, request: web.BaseRequest, refusal: Refusal) -> ReadyResponse:
        return problem_response(refusal.problem, self._ids.name(request.headers.get("X-Request-Id")))

    def _count(self, refusal: Refusal, client: str) -> None:
        self._metrics.refused.labels(refusal.reason).inc()
        now = time.monotonic()
        if now >= self._logged.get(refusal.reason, 0.0):
            self._logged[refusal.reason] = now + _LOG_EVERY
            log.info("client_refused", reason=refusal.reason, client=client, status=refusal.problem.status)
