"""Hits that are served without waiting: from memory, and from the page cache."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TypeAlias

from mirror.cache.cache import Cache
from mirror.core.digest import Digest
from mirror.core.names import Reference, Repository
from mirror.core.outcome import Outcome
from mirror.listener.responses import Rendered
from mirror.maintenance.recheck import Recheck
from mirror.metrics.request_counts import RequestCounts, RequestSeries
from mirror.registry.blob_response import HeldPlan, plan_held
from mirror.registry.manifest_response import ManifestResponses
from mirror.registry.query import Query
from mirror.registry.routing import Route

Respond: TypeAlias = Callable[[str, float], Rendered | None]
"""Returns the response to the client at an address, whose request arrived at a time of `time.perf_counter`; None if the response
has to wait for anything. The caller makes sure that the route is admitted."""


@dataclass(frozen=True, slots=True)
class Hits:
    """Finds the responses to requests of admitted routes."""

    cache: Cache
    recheck: Recheck
    responses: ManifestResponses
    counts: RequestCounts

    def of(self, route: Route, query: Query) -> Respond | None:
        """The function that responds to a query; None if routes of this kind always wait."""
        repository, reference = route.repository, route.reference
        if repository is None or reference is None:
            return None
        if route.kind == "manifest":
            return _ManifestHit(self, repository, reference, query).respond
        if route.kind == "blob" and isinstance(reference, Digest):
            return _BlobHit(self, repository, reference, query).respond
        return None


class _ManifestHit:
    __slots__ = ("_cached", "_hits", "_query", "_reference", "_repository", "_series", "_status")

    def __init__(self, hits: Hits, repository: Repository, reference: Reference, query: Query) -> None:
        self._hits = hits
        self._repository = repository
        self._reference = reference
        self._query = query
        self._cached = hits.cache.manifests.cached
        # The counts of responses with this status.
        self._status = 0
        self._series: RequestSeries | None = None

    def respond(self, client: str, started: float) -> Rendered | None:
        hits, repository = self._hits, self._repository
        answer = self._cached(repository, self._reference)
        if answer is None:
            return None
        rendered = hits.responses.render(answer, self._query)
        series = self._series
        if series is None or rendered.status != self._status:
            self._status = rendered.status
            series = self._series = hits.counts.series(repository.registry, "manifest", Outcome.HIT, rendered.status)
        series.add(len(rendered.body), started)
        return rendered


class _BlobHit:
    __slots__ = ("_blobs", "_digest", "_first_bytes", "_hits", "_plan", "_query", "_repository", "_series", "_size", "_trust")

    def __init__(self, hits: Hits, repository: Repository, digest: Digest, query: Query) -> None:
        self._hits = hits
        self._repository = repository
        self._digest = digest
        self._query = query
        # The plan for a blob of this size, and the counts of its responses.
        self._size: int | None = None
        self._plan: HeldPlan | None = None
        self._series: RequestSeries | None = None
        self._blobs, self._trust = hits.cache.blobs, hits.cache.trust
        self._first_bytes = hits.counts.first_bytes("blob", Outcome.HIT)

    def respond(self, client: str, started: float) -> Rendered | None:
        hits, digest = self._hits, self._digest
        if self._trust is not None and not self._trust.has_passed("blob", self._repository, digest):
            return None
        size = self._blobs.granted_size(self._repository, digest)
        if size is None:
            return None
        if size != self._size:
            self._size, self._plan, self._series = size, plan_held(digest, size, self._query), None
        plan = self._plan
        body = None if plan is None else self._blobs.read_hit(digest, size, plan.start, plan.stop)
        if plan is None or body is None:
            return None
        if self._series is None:
            self._series = hits.counts.series(self._repository.registry, "blob", Outcome.HIT, plan.status)
        self._series.add(len(body), started)
        if body:
            self._first_bytes.add(perf_counter() - started)
        if plan.is_whole:
            if self._query.range is None:
                hits.recheck.begins(digest, client)
            hits.recheck.served(digest, client)
        return Rendered(plan.status, plan.head, body, Outcome.HIT)
