"""Counts of clients' requests, as plain numbers that become metrics when they are collected: a hit takes microseconds."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate
from time import perf_counter
from typing import Final, NamedTuple

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from mirror.core.outcome import Outcome

# Upper bounds of the buckets of durations.
BOUNDS_S: Final = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)
_FIRST_BOUND_S: Final = BOUNDS_S[0]
_LIMITS: Final = (*map(floatToGoString, BOUNDS_S), "+Inf")


# The outcome of requests that are answered with an error; a value of the label only.
ERROR: Final = "ERROR"


class Durations:
    """A histogram of seconds."""

    __slots__ = ("buckets", "sum")

    def __init__(self) -> None:
        self.buckets = [0] * len(_LIMITS)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        # Nearly all hits are in the first bucket.
        self.buckets[0 if seconds <= _FIRST_BOUND_S else bisect_left(BOUNDS_S, seconds)] += 1
        self.sum += seconds

    def merge(self, other: Durations) -> None:
        """Add the counts of another histogram."""
        self.buckets = [own + more for own, more in zip(self.buckets, other.buckets, strict=True)]
        self.sum += other.sum


class _Labels(NamedTuple):
    registry: str
    kind: str
    outcome: str
    status: int


class RequestSeries:
    """Requests with the same labels.

    Attributes:
        durations: until the last byte.
        sent: bytes of bodies.
    """

    __slots__ = ("durations", "sent")

    def __init__(self) -> None:
        self.durations = Durations()
        self.sent = 0

    def add(self, sent: int, started: float) -> None:
        """Count a request that has just been answered.

        Args:
            sent: bytes of the body.
            started: of `time.perf_counter`.
        """
        self.sent += sent
        self.durations.add(perf_counter() - started)


class RequestCounts:
    """Counts the requests of one process, and is a collector of prometheus_client. Only the event loop's thread counts."""

    def __init__(self) -> None:
        self._series: dict[_Labels, RequestSeries] = {}
        # Of streamed bodies; all other responses have their first byte with the last.
        self._first_bytes: dict[tuple[str, str], Durations] = {}

    def series(self, registry: str, kind: str, outcome: str, status: int) -> RequestSeries:
        """The series with these labels, created if needed. It stays the same, so it may be kept."""
        # A named tuple takes four times as long to make; equal tuples are the same key.
        found = self._series.get((registry, kind, outcome, status))  # type: ignore[call-overload]
        return found or self._series.setdefault(_Labels(registry, kind, outcome, status), RequestSeries())

    def declare(self, registry: str) -> None:
        """Begin the most frequent series of a registry at 0."""
        for kind in ("manifest", "blob", "tags", "referrers"):
            for outcome in Outcome:
                self.series(registry, kind, outcome, 200)
            for status in (404, 499, 503):
                self.series(registry, kind, ERROR, status)
        for outcome in (Outcome.HIT, Outcome.MISS, Outcome.JOINED):
            self.series(registry, "blob", outcome, 206)
        for kind in ("manifest", "blob"):
            self.series(registry, kind, Outcome.HIT, 304)

    def add_first_byte(self, kind: str, outcome: str, started: float) -> None:
        """Count that the head of a streamed body has just been sent; `started` is of `time.perf_counter`."""
        self.first_bytes(kind, outcome).add(perf_counter() - started)

    def first_bytes(self, kind: str, outcome: str) -> Durations:
        """The times to the first byte of streamed bodies, created if needed. They stay the same, so they may be kept."""
        return self._first_bytes.setdefault((kind, str(outcome)), Durations())

    def collect(self) -> Iterator[Metric]:
        """The metric families, for a registry of prometheus_client. May be called in any thread."""
        series = self._series.copy()
        requests = CounterMetricFamily("registry_mirror_requests", "Requests by clients", labels=_Labels._fields)
        served: dict[tuple[str, str], int] = {}
        durations: dict[tuple[str, str], Durations] = {}
        first_bytes: dict[tuple[str, str], Durations] = {}
        for labels, one in series.items():
            requests.add_metric([*map(str, labels)], sum(one.durations.buckets))
            served[labels.registry, labels.outcome] = served.get((labels.registry, labels.outcome), 0) + one.sent
            if not any(one.durations.buckets):
                continue
            key = labels.kind, labels.outcome
            durations.setdefault(key, Durations()).merge(one.durations)
            if labels.kind != "blob":
                first_bytes.setdefault(key, Durations()).merge(one.durations)
        for key, more in self._first_bytes.copy().items():
            first_bytes.setdefault(key, Durations()).merge(more)
        yield requests
        yield _histogram("request_duration_seconds", "Until the last byte", durations)
        yield _histogram("time_to_first_byte_seconds", "Until the headers", first_bytes)
        sent = CounterMetricFamily(
            "registry_mirror_served_bytes", "Bytes of bodies sent to clients", labels=("registry", "outcome")
        )
        for key, count in served.items():
            sent.add_metric(key, count)
        yield sent


def _histogram(name: str, help_text: str, durations: dict[tuple[str, str], Durations]) -> Metric:
    family = HistogramMetricFamily(f"registry_mirror_{name}", help_text, labels=("kind", "outcome"))
    for labels, one in durations.items():
        family.add_metric(labels, list(zip(_LIMITS, accumulate(one.buckets), strict=True)), one.sum)
    return family
