"""Tracing by OpenTelemetry. Imported only if it is configured, since its packages are the extra `otel`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import structlog
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExportResult
from opentelemetry.trace import Span as Recording
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mirror import __version__
from mirror.spans import Span, current

log = structlog.get_logger(__name__)

# Of an attribute: paths and causes are a client's or an upstream's to choose.
_MAX_CHARACTERS = 300
# Until the last spans are sent at the stop.
_CLOSE_TIMEOUT_S = 2.0
_PATH = "/v1/traces"


class Tracing:
    """Starts spans, and sends them in the background.

    Spans that cannot be sent are dropped: at most 2048 wait. The sampler, headers for the collector and further attributes are
    those of OpenTelemetry's environment variables. Must be made after the fork, for a thread belongs to it.

    Args:
        endpoint: URL of a collector that speaks OTLP over HTTP.
    """

    def __init__(self, endpoint: str) -> None:
        # Each failed batch, and each dropped span, would be a line; `_Collector` logs the change.
        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
        url = endpoint.rstrip("/")
        url = url if url.endswith(_PATH) else url + _PATH
        resource = {"service.name": os.environ.get("OTEL_SERVICE_NAME", "registry-mirror"), "service.version": __version__}
        self._provider = TracerProvider(
            resource=Resource.create({**resource, "process.pid": os.getpid()}),
            span_limits=SpanLimits(max_span_attribute_length=_MAX_CHARACTERS),
            shutdown_on_exit=False,
        )
        exporter: Any = _Collector(OTLPSpanExporter(endpoint=url), url)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("registry-mirror", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @contextlib.contextmanager
    def request(self, name: str, traceparent: str | None) -> Iterator[Span]:
        """The span of a client's request, as a part of the client's trace if it names one. It is current in the context."""
        parent = Context() if traceparent is None else self._propagator.extract({"traceparent": traceparent}, Context())
        span = Span(self, self._tracer.start_span(name, parent, SpanKind.SERVER))
        token = current.set(span)
        try:
            yield span
        finally:
            current.reset(token)
            span.end()

    def begin(self, name: str, parent: Recording, *, is_client: bool, began: float | None) -> Recording:
        """Begin a span below another one; see `Span.child`."""
        kind = SpanKind.CLIENT if is_client else SpanKind.INTERNAL
        since = None if began is None else int(began * 1e9)
        return self._tracer.start_span(name, set_span_in_context(parent), kind, start_time=since)

    @staticmethod
    def fail(recording: Recording, cause: str) -> None:
        """Mark a span as failed."""
        recording.set_status(Status(StatusCode.ERROR, cause[:_MAX_CHARACTERS]))

    async def close(self) -> None:
        """Send what is left, for a moment at most."""
        # No thread of the event loop's executor: those are waited for without a bound.
        thread = threading.Thread(target=self._provider.shutdown, daemon=True)
        thread.start()
        await asyncio.to_thread(thread.join, _CLOSE_TIMEOUT_S)


class _Collector:
    """An exporter that logs when the collector stops taking spans, and when it takes them again."""

    def __init__(self, exporter: Any, url: str) -> None:
        self._exporter = exporter
        self._url = url
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans; called by the thread of the processor."""
        result: SpanExportResult = self._exporter.export(spans)
        failing = result.name != "SUCCESS"
        if failing and not self._failing:
            log.warning("spans_not_sent", collector=self._url, consequence="they are dropped")
        elif self._failing and not failing:
            log.info("spans_sent_again", collector=self._url)
        self._failing = failing
        return result

    def shutdown(self) -> None:
        """Interrupt what is being sent."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing waits here."""
        return bool(self._exporter.force_flush(timeout_millis))
