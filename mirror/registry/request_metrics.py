"""Counts requests. A hit takes microseconds, so the metrics it belongs to are looked up once and kept."""

from __future__ import annotations

import time
from typing import NamedTuple

from prometheus_client import Counter, Histogram

from mirror.core.names import Repository
from mirror.core.outcome import Outcome
from mirror.metrics import Metrics


class _Family(NamedTuple):
    requests: Counter
    duration: Histogram
    first_byte: Histogram | None
    served: Counter


class RequestMetrics:
    """The request metrics, by what they are labelled with; all labels are bounded."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._families: dict[tuple[str, str, Outcome, int], _Family] = {}

    def count(self, kind: str, repository: Repository, outcome: Outcome, status: int, sent: int, started: float) -> None:
        """Count a request that has been answered; `started` is of `time.perf_counter`."""
        key = (repository.registry, kind, outcome, status)
        family = self._families.get(key) or self._family(key)
        elapsed = time.perf_counter() - started
        family.requests.inc()
        family.duration.observe(elapsed)
        if family.first_byte is not None:
            family.first_byte.observe(elapsed)
        if sent:
            family.served.inc(sent)

    def first_byte(self, kind: str, outcome: Outcome, started: float) -> None:
        """Note that the headers of a streamed body go out."""
        self._metrics.first_byte.labels(kind, outcome).observe(time.perf_counter() - started)

    def _family(self, key: tuple[str, str, Outcome, int]) -> _Family:
        registry, kind, outcome, status = key
        metrics = self._metrics
        # A blob's first byte is noted when it goes out; for everything else, it is the last one, too.
        first = None if kind == "blob" else metrics.first_byte.labels(kind, outcome)
        family = _Family(
            metrics.requests.labels(registry, kind, outcome, str(status)),
            metrics.request_duration.labels(kind, outcome),
            first,
            metrics.served_bytes.labels(registry, outcome),
        )
        self._families[key] = family
        return family
