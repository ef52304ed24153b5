"""Hits that need nothing but what is at hand: memory, and pages of the page cache."""

from __future__ import annotations

from mirror.cache.blobs import Blobs
from mirror.cache.manifests import Manifests
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.core.outcome import Outcome
from mirror.listener.responses import Rendered
from mirror.maintenance.recheck import Recheck
from mirror.registry.blob_response import plan_held
from mirror.registry.manifest_response import ManifestResponses
from mirror.registry.query import Query
from mirror.registry.request_metrics import RequestMetrics
from mirror.registry.routing import Route


class Hits:
    """Responds without waiting for anything."""

    def __init__(
        self, manifests: Manifests, blobs: Blobs, recheck: Recheck, responses: ManifestResponses, request_metrics: RequestMetrics
    ) -> None:
        self._manifests = manifests
        self._blobs = blobs
        self._recheck = recheck
        self._responses = responses
        self._request_metrics = request_metrics

    def respond(self, route: Route, query: Query, client: str, started: float) -> Rendered | None:
        """The response to a query of an admitted route; None if something has to be waited for.

        Args:
            client: its address.
            started: of `time.perf_counter`.
        """
        repository, reference = route.repository, route.reference
        if repository is None or reference is None:
            return None
        if route.kind == "manifest":
            answer = self._manifests.cached(repository, reference)
            if answer is None:
                return None
            return self._responses.render(repository, answer, query, started)
        if route.kind == "blob" and isinstance(reference, Digest):
            return self._blob(repository, reference, query, client, started)
        return None

    def _blob(self, repository: Repository, digest: Digest, query: Query, client: str, started: float) -> Rendered | None:
        size = self._blobs.granted_size(repository, digest)
        plan = None if size is None else plan_held(digest, size, query)
        held = None if size is None or plan is None else self._blobs.open_hit(digest, size)
        if held is None or plan is None:
            return None
        with held.file:
            rendered = plan.render(held.file.fileno())
        if rendered is None:
            return None
        self._request_metrics.count("blob", repository, Outcome.HIT, rendered.status, len(rendered.body), started)
        if query.is_head or rendered.status == 304:
            return rendered
        self._request_metrics.first_byte("blob", Outcome.HIT, started=started)
        if query.range is None:
            self._recheck.begins(digest, client)
        if rendered.status == 200:
            self._recheck.served(digest, client)
        return rendered
