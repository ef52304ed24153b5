"""Authorizes requests to the admin address, before a body is read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import structlog
from aiohttp import web
from aiohttp.abc import AbstractRouter

from mirror.admin.api import OPEN
from mirror.admin.openapi import JSON, Operation, operation_of
from mirror.admin.page.frame import is_page
from mirror.admin.senders import is_bearer, is_own_origin
from mirror.core.errors import InvalidInput
from mirror.core.media import strip_parameters
from mirror.core.redaction import without_secret
from mirror.errors import Offline, StorageError
from mirror.listener.admission import WEBHOOK_PREFIX
from mirror.listener.oci_errors import Problem
from mirror.throttled_log import ThrottledLog

log = structlog.get_logger(__name__)

_SAFE_METHODS = frozenset({"GET", "HEAD"})


class AdminGuard:
    """Passes authorized requests to `handler`, and answers every error as `{"error": "…"}`.

    An address on loopback may have no token. Then no web page can change anything: a form's POST has another content type, a
    script's needs a preflight (Fetch, CORS preflight), and both send their origin.

    Attributes:
        token: required of each request; None for an address without one.
    """

    def __init__(
        self,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
        router: AbstractRouter,
    ) -> None:
        self.token: str | None = None
        self._handler = handler
        self._router = router
        self._log = ThrottledLog(log)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request."""
        assert isinstance(request, web.Request)
        try:
            await self._admit(request)
            response = await self._handler(request)
        except InvalidInput as error:
            response = error_response(400, str(error))
        except Offline as error:
            response = error_response(409, str(error))
        except StorageError as error:
            response = error_response(503, str(error))
        except web.HTTPException as error:
            headers = {
                name: error.headers[name] for name in ("Allow", "Retry-After", "WWW-Authenticate") if name in error.headers
            }
            response = error_response(error.status, error.text or error.reason, headers)
        response.headers.setdefault("Server", "registry-mirror")
        return response

    async def _admit(self, request: web.Request) -> None:
        """Raise web.HTTPException for an unauthorized request."""
        # Pages have sessions, and forms of their own; see `mirror.admin.page`.
        if is_page(request.path) or (request.path in OPEN and request.method in _SAFE_METHODS):
            return
        if self.token is not None:
            if not is_bearer(request.headers.get("Authorization", ""), self.token):
                self._refused(request, "no token, or a wrong one")
                raise web.HTTPUnauthorized(text="a token is required", headers={"WWW-Authenticate": "Bearer"})
        # Webhooks have a secret of their own.
        elif request.method not in _SAFE_METHODS and not request.raw_path.startswith(WEBHOOK_PREFIX):
            route = await self._router.resolve(request)
            if route.http_exception is None:
                self._admit_change(request, operation_of(route.handler))

    def _admit_change(self, request: web.Request, operation: Operation | None) -> None:
        if not is_own_origin(request):
            self._refused(request, "a web page's")
            raise web.HTTPForbidden(text="a web page of another origin may change nothing here")
        takes = JSON if operation is None else operation.takes
        if (request.method == "POST" or request.can_read_body) and _content_type(request) != takes:
            self._refused(request, f"not {takes}")
            raise web.HTTPUnsupportedMediaType(text=f"Content-Type: {takes} is required, also without a body")

    def _refused(self, request: web.Request, why: str) -> None:
        path = without_secret(request.path)[:200]
        method = request.method[:20]
        self._log.log("warning", "audit", why, action="refused", why=why, method=method, path=path, client=request.remote)


def error_response(status: int, message: str | None, headers: dict[str, str] | None = None) -> web.StreamResponse:
    """Return an error in the admin address's format."""
    return web.json_response({"error": message}, status=status, headers={"Server": "registry-mirror", **(headers or {})})


def respond(problem: Problem, _: str) -> web.StreamResponse:
    """Return a problem in the admin address's format."""
    return error_response(problem.status, f"{problem.message}: {problem.detail}", problem.headers)


def _content_type(request: web.Request) -> str:
    return strip_parameters(request.headers.get("Content-Type", ""))
