"""A collector of OTLP over HTTP, which reads the spans that it is sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.receiver import Receiver


@dataclass
class SentSpan:
    """A span; ids in hexadecimal, times in seconds."""

    name: str
    kind: int
    trace: str
    own: str
    parent: str
    attributes: dict[str, Any]
    resource: dict[str, Any]
    failed: bool
    seconds: float


class Collector(Receiver):
    """Takes spans, or does what `script` says; see `Receiver`."""

    @property
    def endpoint(self) -> str:
        """What is configured."""
        return self.url.partition("/hook")[0]

    @property
    def spans(self) -> list[SentSpan]:
        """All that have come."""
        return [span for request in self.received for span in _spans(request.body)]

    def named(self, name: str) -> list[SentSpan]:
        """Those of a name."""
        return [span for span in self.spans if span.name == name]


def _spans(body: bytes) -> list[SentSpan]:
    message = ExportTraceServiceRequest.FromString(body)
    return [
        SentSpan(
            span.name,
            span.kind,
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            _values(span.attributes),
            _values(group.resource.attributes),
            span.status.code == 2,
            (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        )
        for group in message.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
