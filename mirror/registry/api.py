"""The registry address: the read part of the OCI distribution API.

This module only understands requests and words answers; what is answered is decided in `mirror.cache`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any, TypeVar

import structlog
from aiohttp import web

from mirror.cache.answers import ManifestAnswer
from mirror.cache.blobs import Blobs
from mirror.cache.catalog import Catalog
from mirror.cache.listings import Listings
from mirror.cache.manifests import Manifests
from mirror.cache.pull_policy import PullPolicy
from mirror.core.conditions import etag_matches
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.core.outcome import Outcome
from mirror.core.redaction import without_secret
from mirror.core.staleness import said
from mirror.errors import MirrorError, PolicyDenied, TooManyDownloads, UpstreamTimeout
from mirror.listener import oci_errors
from mirror.listener.paging import page, page_link, page_size
from mirror.listener.responses import ReadyResponse, head, problem_response
from mirror.listener.server import while_connected
from mirror.maintenance.recheck import Recheck
from mirror.metrics import Metrics
from mirror.registry.blob_response import send_blob
from mirror.registry.request_metrics import RequestMetrics
from mirror.registry.routing import Route, Router
from mirror.throttled_log import ThrottledLog
from mirror.tracing import RequestIds, ViaChain, request_id

log = structlog.get_logger(__name__)

# Clients give up after 30 s, and want to turn elsewhere before. Seconds.
_PATIENCE = 25.0
T = TypeVar("T")
_NO_ROUTE: tuple[Route | None, bool] = (None, False)
_MAX_ROUTES = 8192
# Longer targets are understood anew each time: their length is the client's to choose.
_LONGEST_ROUTE = 512
_MAX_HEADS = 4096
_PING = head(200, {"Content-Type": "application/json", "Content-Length": "2"})


async def _bounded(work: Coroutine[Any, Any, T], request: web.BaseRequest | None = None) -> T:
    """An answer in the time that clients give, however many questions to upstream it takes; what has been begun goes on.

    Args:
        request: whose client need not be waited for once it has left.

    Raises:
        UpstreamTimeout: it is not there.
        ConnectionResetError: the client has left.
    """
    try:
        async with while_connected(request, _PATIENCE) if request is not None else asyncio.timeout(_PATIENCE):
            return await work
    except TimeoutError as error:
        raise UpstreamTimeout(f"upstream did not answer all that had to be asked within {_PATIENCE:g} s") from error


def _warning(reason: str | None) -> dict[str, str]:
    """The header that says why an answer is stale (RFC 7234 section 5.5.1), if it is."""
    return {} if reason is None else {"Warning": f'110 - "{said(reason)}"'}


class RegistryApi:
    """Answers requests of container clients. Rebuilt when the configuration changes."""

    def __init__(
        self,
        router: Router,
        pull_policy: PullPolicy,
        manifests: Manifests,
        blobs: Blobs,
        listings: Listings,
        catalog: Catalog,
        metrics: Metrics,
        recheck: Recheck,
        via_chain: ViaChain | None = None,
    ) -> None:
        self._recheck = recheck
        self._via_chain = via_chain
        self._router = router
        self._pull_policy = pull_policy
        self._manifests = manifests
        self._blobs = blobs
        self._listings = listings
        self._catalog = catalog
        self._request_metrics = RequestMetrics(metrics)
        self._denied = metrics.refused.labels("policy")
        self._too_many = metrics.refused.labels("downloads")
        self._ids = RequestIds()
        # With whether they may be answered for as long as nothing is configured anew.
        self._routes: dict[str, tuple[Route, bool]] = {}
        self._heads: dict[tuple[Digest, str], bytes] = {}
        self._log = ThrottledLog(log)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request; never raises but for a client that has gone."""
        started = time.perf_counter()
        name = self._ids.name(request.headers.get("X-Request-Id"))
        if request.method not in ("GET", "HEAD"):
            return problem_response(oci_errors.write_refused(request.method), name)
        route, constant = self._routes.get(request.raw_path, _NO_ROUTE)
        if route is not None and not constant and not self._pull_policy.is_cached(route.repository, route.reference):
            route = None
        if route is not None and route.kind == "manifest":
            assert route.repository is not None
            assert route.reference is not None
            answer = self._manifests.cached(route.repository, route.reference)
            if answer is not None:
                return self._manifest(request, route.repository, answer, name, started)
        request_id.set(name)
        structlog.contextvars.bind_contextvars(request=name)
        try:
            if self._via_chain is not None:
                self._via_chain.enter(request.headers.getall("Via", ()))
            if route is None:
                route = self._router.route(request.raw_path)
                if route is None:
                    return problem_response(oci_errors.not_found(request.raw_path), name)
                await self._admit(route, request.raw_path)
            return await self._answer(request, route, name, started)
        except Exception as error:  # noqa: BLE001 - the last one to turn it into an answer
            return self._failed(request, route, error, name, started)

    async def _admit(self, route: Route, target: str) -> None:
        """Have the policy look at a route; later requests for the same target find it admitted, as long as that holds."""
        if route.repository is not None:
            await self._pull_policy.check(route.repository, route.reference)
        if len(target) <= _LONGEST_ROUTE:
            if len(self._routes) >= _MAX_ROUTES:
                self._routes.clear()
            self._routes[target] = (
                route,
                route.repository is None or self._pull_policy.is_constant(route.repository, route.reference),
            )

    async def _answer(self, request: web.BaseRequest, route: Route, name: str, started: float) -> web.StreamResponse:
        if route.kind == "ping":
            return ReadyResponse(200, _PING, b"{}", name)
        if route.kind == "catalog":
            return await self._repositories(route, name)
        repository = route.repository
        assert repository is not None
        if route.kind == "tags":
            return await self._tags(repository, route, name, started)
        if route.kind == "manifest":
            assert route.reference is not None
            answer = await _bounded(self._manifests.get(repository, route.reference, head=request.method == "HEAD"))
            return self._manifest(request, repository, answer, name, started)
        assert isinstance(route.reference, Digest)
        if route.kind == "referrers":
            return await self._referrers(repository, route.reference, route, name, started)
        return await self._blob(request, repository, route.reference, name, started)

    # ---- manifests

    def _manifest(
        self,
        request: web.BaseRequest,
        repository: Repository,
        answer: ManifestAnswer,
        name: str,
        started: float,
    ) -> web.StreamResponse:
        if "If-None-Match" in request.headers and etag_matches(request.headers["If-None-Match"], answer.digest):
            rendered = head(304, {"ETag": f'"{answer.digest}"', "X-Cache": answer.outcome})
            self._request_metrics.count("manifest", repository, answer.outcome, 304, 0, started)
            return ReadyResponse(304, rendered, b"", name)
        rendered = self._manifest_head(answer)
        body = answer.raw or b""
        sent = 0 if request.method == "HEAD" else len(body)
        self._request_metrics.count("manifest", repository, answer.outcome, 200, sent, started)
        return ReadyResponse(200, rendered, body, name)

    def _manifest_head(self, answer: ManifestAnswer) -> bytes:
        if answer.outcome is not Outcome.HIT:
            return self._rendered_head(answer)
        # Not the answer itself: as a key it would keep its bytes in memory.
        key = answer.digest, answer.media_type
        rendered = self._heads.get(key)
        if rendered is None:
            if len(self._heads) >= _MAX_HEADS:
                self._heads.clear()
            rendered = self._heads[key] = self._rendered_head(answer)
        return rendered

    @staticmethod
    def _rendered_head(answer: ManifestAnswer) -> bytes:
        headers = {
            "Content-Type": answer.media_type,
            "Content-Length": str(answer.size),
            "Docker-Content-Digest": str(answer.digest),
            "ETag": f'"{answer.digest}"',
            "X-Cache": answer.outcome,
        }
        return head(200, {**headers, **_warning(answer.reason)})

    # ---- blobs

    async def _blob(
        self, request: web.BaseRequest, repository: Repository, digest: Digest, name: str, started: float
    ) -> web.StreamResponse:
        if etag_matches(request.headers.get("If-None-Match"), digest):
            # The client has it, but whether it is still granted is upstream's to say.
            _, outcome = await _bounded(self._blobs.head(repository, digest))
            self._request_metrics.count("blob", repository, outcome, 304, 0, started)
            return ReadyResponse(304, head(304, {"ETag": f'"{digest}"', "X-Cache": outcome}), b"", name)
        if request.method == "HEAD":
            size, outcome = await _bounded(self._blobs.head(repository, digest))
            headers = {
                "Content-Type": "application/octet-stream",
                "Content-Length": str(size),
                "Docker-Content-Digest": str(digest),
                "ETag": f'"{digest}"',
                "Accept-Ranges": "bytes",
                "X-Cache": outcome,
            }
            self._request_metrics.count("blob", repository, outcome, 200, 0, started)
            return ReadyResponse(200, head(200, headers), b"", name)
        answer, client = await _bounded(self._blobs.get(repository, digest), request), request.remote or ""
        if answer.outcome is Outcome.HIT and "Range" not in request.headers:
            self._recheck.begins(digest, client)

        def ended(outcome: Outcome, status: int, sent: int) -> None:
            self._request_metrics.count("blob", repository, outcome, status, sent, started)
            if outcome is Outcome.HIT and status == 200 and sent == answer.size:
                self._recheck.served(digest, client)

        try:
            first_byte = partial(self._request_metrics.first_byte, "blob", started=started)
            return await send_blob(request, answer, name, self._log, first_byte, ended)
        finally:
            await answer.body.close()

    # ---- lists

    async def _tags(self, repository: Repository, route: Route, name: str, started: float) -> web.StreamResponse:
        # Upstream would refuse it, too; but that would look like upstream being out of order.
        page_size(route.parameter("n"))
        answer = await _bounded(self._listings.tags(repository, route.path, dict(route.query)))
        self._request_metrics.count("tags", repository, answer.outcome, 200, len(answer.body), started)
        return self._list(answer.body, {**answer.headers, **_warning(answer.reason)}, answer.outcome, name)

    async def _referrers(
        self, repository: Repository, digest: Digest, route: Route, name: str, started: float
    ) -> web.StreamResponse:
        answer = await _bounded(self._listings.referrers(repository, digest, route.path, dict(route.query)))
        self._request_metrics.count("referrers", repository, answer.outcome, 200, len(answer.body), started)
        return self._list(answer.body, {**answer.headers, **_warning(answer.reason)}, answer.outcome, name)

    async def _repositories(self, route: Route, name: str) -> web.StreamResponse:
        found = await self._catalog.repositories()
        names, more = page(found, route.parameter("n"), route.parameter("last"))
        headers = {"Content-Type": "application/json"}
        if more:
            headers["Link"] = page_link(route.path, len(names), names[-1])
        return self._list(json.dumps({"repositories": names}).encode(), headers, Outcome.HIT, name)

    def _list(self, body: bytes, headers: dict[str, str], outcome: Outcome, name: str) -> web.StreamResponse:
        rendered = head(200, {**headers, "Content-Length": str(len(body)), "X-Cache": outcome})
        return ReadyResponse(200, rendered, body, name)

    # ---- errors and figures

    def _failed(
        self, request: web.BaseRequest, route: Route | None, error: Exception, name: str, started: float
    ) -> web.StreamResponse:
        if isinstance(error, ConnectionError):
            # The client has gone: whatever is answered fails quietly on its way.
            return ReadyResponse(499, b"", b"", name)
        kind = route.kind if route else ""
        if isinstance(error, PolicyDenied):
            self._denied.inc()
        if isinstance(error, TooManyDownloads):
            self._too_many.inc()
        problem = oci_errors.problem(error, kind)
        reason, path = f"{problem.status} {type(error).__name__}", without_secret(request.raw_path)[:300]
        if problem.status == 500:
            self._log.tell("error", "request_failed", reason, path=path, exc_info=error)
        else:
            level = "warning" if isinstance(error, MirrorError) and problem.status >= 500 else "info"
            self._log.tell(level, "request_refused", reason, path=path, status=problem.status, cause=without_secret(str(error)))
        if route is not None and route.repository is not None:
            self._request_metrics.count(kind, route.repository, Outcome.MISS, problem.status, 0, started)
        return problem_response(problem, name)
