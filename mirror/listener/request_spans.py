"""The spans of requests at the registry address."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import TYPE_CHECKING

from aiohttp import web

from mirror.core.redaction import without_secret
from mirror.listener.responses import TARGET, ReadyResponse
from mirror.spans import Span
from mirror.tracing import request_id

if TYPE_CHECKING:
    from mirror.otel import Tracing

_TRACEPARENT = "traceparent"


class RequestSpans:
    """Gives each request a span, which says what the access log says. What a client is answered inline has none."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing

    async def watch(
        self, request: web.BaseRequest, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Handle a request inside a span."""
        started = perf_counter()
        with self._tracing.request(request.method[:20], request.headers.get(_TRACEPARENT)) as span:
            try:
                response = await handler(request)
            except BaseException as error:
                span.fail(type(error).__name__)
                raise
            finally:
                _describe_request(span, request)
            _describe_response(span, request, response, started)
        return response


def _describe_request(span: Span, request: web.BaseRequest) -> None:
    path = without_secret(request.raw_path.partition("?")[0])
    span.set(http__request__method=request.method[:20], url__path=path, client__address=request.remote or "")
    span.set(registry_mirror__request=request_id.get())
    target = request.get(TARGET)
    if target is not None:
        kind, repository, reference = target
        span.rename(f"{request.method} {kind}")
        if repository is not None:
            span.set(registry_mirror__registry=repository.registry, registry_mirror__repository=repository.path)
        if reference is not None:
            span.set(registry_mirror__reference=str(reference))


def _describe_response(span: Span, request: web.BaseRequest, response: web.StreamResponse, started: float) -> None:
    span.set(http__response__status_code=response.status)
    if not isinstance(response, ReadyResponse):
        return
    if response.word:
        span.set(registry_mirror__outcome=response.word)
    first_byte = response.begun if response.begun is not None else perf_counter()
    span.set(registry_mirror__first_byte_s=round(first_byte - started, 6))
    span.set(http__response__body__size=response.body_bytes(request.method))
    if response.status >= 500 or response.is_short:
        span.fail(without_secret(response.cause))
