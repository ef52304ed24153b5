"""Spans of requests and of what they wait for, sent to a collector of OpenTelemetry if `tracing.otlp_endpoint` is set.

The current span is a context variable, so the work that a request starts belongs to it. Without tracing there is none, and
nothing of OpenTelemetry is imported.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.trace import Span as Recording

    from mirror.otel import Tracing

# Shorter waits are not worth a span.
_MIN_WAIT_S = 0.001


class Span:
    """A span that has begun."""

    __slots__ = ("_recording", "_tracing")

    def __init__(self, tracing: Tracing, recording: Recording) -> None:
        self._tracing = tracing
        self._recording = recording

    @property
    def traceparent(self) -> str:
        """The header that makes a request part of this span (W3C Trace Context, section 3.2)."""
        context = self._recording.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def rename(self, name: str) -> None:
        """Change the name, which may be known only after the beginning."""
        self._recording.update_name(name)

    def set(self, **attributes: str | float) -> None:
        """Set attributes; `__` in a name stands for a dot."""
        self._recording.set_attributes({name.replace("__", "."): value for name, value in attributes.items()})

    def fail(self, cause: str) -> None:
        """Mark the span as failed."""
        self._tracing.fail(self._recording, cause)

    def child(self, name: str, *, is_client: bool = False, began: float | None = None) -> Span:
        """Begin a span below this one.

        Args:
            is_client: it is a request to another server.
            began: when it began, of `time.time`; None for now.
        """
        return Span(self._tracing, self._tracing.begin(name, self._recording, is_client=is_client, began=began))

    def end(self) -> None:
        """End it, and hand it over to be sent."""
        self._recording.end()


current: ContextVar[Span | None] = ContextVar("span", default=None)
"""The span that the current work is a part of."""


@contextlib.contextmanager
def request_to(name: str, host: str | None, method: str) -> Iterator[Span | None]:
    """The span of a request to another server, until the headers of its response; None without tracing."""
    parent = current.get()
    if parent is None:
        yield None
        return
    with _ended(parent.child(name, is_client=True)) as span:
        span.set(http__request__method=method, server__address=host or "")
        yield span


@contextlib.contextmanager
def part(name: str) -> Iterator[Span | None]:
    """The span of a part of the work for a request; None without tracing."""
    parent = current.get()
    if parent is None:
        yield None
        return
    with _ended(parent.child(name)) as span:
        yield span


@contextlib.contextmanager
def wait(name: str) -> Iterator[None]:
    """The span of a wait, unless it is too short to matter."""
    parent = current.get()
    if parent is None:
        yield
        return
    began, started = time.time(), time.monotonic()
    try:
        yield
    finally:
        if time.monotonic() - started >= _MIN_WAIT_S:
            parent.child(name, began=began).end()


def leave() -> None:
    """Make the rest of the current task no part of a request: it may go on for hours."""
    current.set(None)


@contextlib.contextmanager
def _ended(span: Span) -> Iterator[Span]:
    try:
        yield span
    except BaseException as error:
        span.fail(str(error) or type(error).__name__)
        raise
    finally:
        span.end()
