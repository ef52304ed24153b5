"""The registry address: the read part of the OCI distribution API.

This module maps requests to `mirror.cache` and its answers to responses. It decides nothing itself.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Coroutine, Iterable
from functools import partial
from typing import Any, TypeVar

import structlog
from aiohttp import web

from mirror.cache.cache import Cache
from mirror.core.digest import Digest
from mirror.core.names import Repository
from mirror.core.outcome import Outcome
from mirror.core.paging import page, page_link, page_size
from mirror.core.ranges import etag_matches
from mirror.core.redaction import without_secret
from mirror.errors import MirrorError, PolicyDenied, TooManyDownloads, UpstreamTimeout
from mirror.listener import oci_errors
from mirror.listener.inline import InlineRequests
from mirror.listener.responses import RESPONSE, TARGET, ReadyResponse, Rendered, disconnected, head, problem_response
from mirror.listener.server import while_connected
from mirror.maintenance.recheck import Recheck
from mirror.registry.blob_response import described, not_modified, redirected, send_blob
from mirror.registry.hits import Hits, Respond
from mirror.registry.manifest_response import ManifestResponses, warning
from mirror.registry.query import Query
from mirror.registry.routing import AdmittedRoute, AdmittedRoutes, Route, Router
from mirror.registry.search import SEARCH_PING, search
from mirror.throttled_log import ThrottledLog
from mirror.tracing import ViaChain, request_id

log = structlog.get_logger(__name__)

# Clients give up after 30 s, and need time to try another host before.
_TIMEOUT_S = 25.0
T = TypeVar("T")
_PING = Rendered(200, head(200, {"Content-Type": "application/json", "Content-Length": "2"}), b"{}")


async def _bounded(work: Coroutine[Any, Any, T], request: web.BaseRequest | None = None) -> T:
    """Bound the wait for an answer, however many upstream requests it takes. Fetches that have started continue.

    Args:
        request: cancel the wait when its client disconnects.

    Raises:
        UpstreamTimeout: the time limit is exceeded.
        ConnectionResetError: the client has disconnected.
    """
    try:
        async with while_connected(request, _TIMEOUT_S) if request is not None else asyncio.timeout(_TIMEOUT_S):
            return await work
    except TimeoutError as error:
        raise UpstreamTimeout(f"upstream did not answer all that had to be asked within {_TIMEOUT_S:g} s") from error


def _about(registries: Iterable[str]) -> Rendered:
    """The response to a person who opens the address in a browser."""
    text = f"registry-mirror: a read-only mirror of {', '.join(sorted(registries))} for container clients; its API is at /v2/\n"
    body = text.encode()
    return Rendered(200, head(200, {"Content-Type": "text/plain; charset=utf-8", "Content-Length": str(len(body))}), body)


class RegistryApi:
    """Answers requests of container clients. Rebuilt when the configuration changes.

    Attributes:
        inline: requests that were hits before; see `mirror.listener.inline`.
    """

    def __init__(self, router: Router, cache: Cache, recheck: Recheck, via_chain: ViaChain | None = None) -> None:
        metrics = cache.context.metrics
        self._router = router
        self._cache = cache
        self._recheck = recheck
        self._via_chain = via_chain
        self._counts = metrics.requests
        self._denied = metrics.refused.labels("policy")
        self._too_many = metrics.refused.labels("downloads")
        self._admitted = AdmittedRoutes(cache.pull_policy)
        self._manifest_responses = ManifestResponses()
        self._hits = Hits(cache, recheck, self._manifest_responses, self._counts)
        self._fixed = {"ping": _PING, "about": _about(router.registries), "search_ping": SEARCH_PING}
        self.inline = InlineRequests()
        self._log = ThrottledLog(log)

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Handle one request, and count it if it names a repository."""
        started = time.perf_counter()
        name = request_id.get()
        if request.method not in ("GET", "HEAD"):
            return problem_response(oci_errors.write_refused(request.method), name)
        admitted = self._admitted.find(request.raw_path)
        try:
            if admitted is not None:
                request[TARGET] = admitted.route.target
                hit = self._hit(request, admitted, started)
                if hit is not None:
                    return ReadyResponse(hit, name)
            response = await self._answer(request, admitted, name, started)
        except Exception as error:  # noqa: BLE001 - nothing else turns it into a response
            response = self._failed(request, error, name)
        except BaseException:
            # Cancelled at the end of the mirror.
            self._count(request, request.get(RESPONSE) or disconnected(name), started)
            raise
        if request.transport is None and response.begun is None:
            # The client left while its response was made.
            response = disconnected(name)
        self._count(request, response, started)
        return response

    def _hit(self, request: web.BaseRequest, admitted: AdmittedRoute, started: float) -> Rendered | None:
        respond = self._hits.of(admitted.route, Query.of(request))
        hit = None if respond is None else respond(request.remote or "", started)
        if respond is not None and hit is not None:
            self.inline.add(request, partial(self._respond_inline, admitted, respond))
        return hit

    def _respond_inline(self, admitted: AdmittedRoute, respond: Respond, client: str) -> Rendered | None:
        """The response to a request that was a hit before; None if it is no hit any more."""
        started = time.perf_counter()
        if not admitted.constant and not self._admitted.holds(admitted):
            return None
        try:
            return respond(client, started)
        except Exception:  # noqa: BLE001 - `handle` meets the same, and responds to it
            return None

    async def _answer(self, request: web.BaseRequest, admitted: AdmittedRoute | None, name: str, started: float) -> ReadyResponse:
        if self._via_chain is not None:
            self._via_chain.enter(request.headers.getall("Via", ()))
        route = self._router.route(request.raw_path) if admitted is None else admitted.route
        if route is None:
            return problem_response(oci_errors.not_found(request.raw_path), name)
        if admitted is None:
            request[TARGET] = route.target
            await self._admitted.admit(route, request.raw_path)
        repository = route.repository
        if repository is None:
            return await self._general(route, name)
        if route.kind == "tags":
            return await self._tags(repository, route, name)
        if route.kind == "manifest":
            assert route.reference is not None
            answer = await _bounded(self._cache.manifests.get(repository, route.reference, head=request.method == "HEAD"))
            return ReadyResponse(self._manifest_responses.render(answer, Query.of(request)), name)
        assert isinstance(route.reference, Digest)
        if route.kind == "referrers":
            return await self._referrers(repository, route.reference, route, name)
        return await self._blob(request, repository, route.reference, name, started)

    async def _general(self, route: Route, name: str) -> ReadyResponse:
        """The response to a request that names no repository."""
        if route.kind == "catalog":
            return await self._repositories(route, name)
        if route.kind == "search":
            return ReadyResponse(await search(self._cache.catalog, route), name)
        return ReadyResponse(self._fixed[route.kind], name)

    # ---- blobs

    async def _blob(
        self, request: web.BaseRequest, repository: Repository, digest: Digest, name: str, started: float
    ) -> ReadyResponse:
        if self._cache.trust is not None:
            await _bounded(self._cache.trust.require_blob(repository, digest), request)
        if etag_matches(request.headers.get("If-None-Match"), digest):
            # The client has the content; only upstream knows whether it is still granted.
            _, outcome = await _bounded(self._cache.blobs.head(repository, digest))
            return ReadyResponse(Rendered(304, not_modified(digest, outcome), b"", outcome), name)
        if request.method == "HEAD":
            size, outcome = await _bounded(self._cache.blobs.head(repository, digest))
            return ReadyResponse(Rendered(200, described(digest, size, outcome), b"", outcome), name)
        answer = self._cache.blobs.open_hit(repository, digest)
        if answer is None and "Range" not in request.headers:
            url = await _bounded(self._cache.blobs.redirects.url(repository, digest, request.remote or ""), request)
            if url is not None:
                return ReadyResponse(Rendered(307, redirected(digest, url), b"", Outcome.BYPASS), name)
        if answer is None:
            answer = await _bounded(self._cache.blobs.get(repository, digest), request)
        client, size = request.remote or "", answer.size
        if answer.outcome is Outcome.HIT and "Range" not in request.headers:
            self._recheck.begins(digest, client)
        try:
            first_byte = partial(self._counts.add_first_byte, "blob", started=started)
            response = await send_blob(request, answer, name, self._log, first_byte)
            if response.outcome is Outcome.HIT and response.status == 200 and response.sent == size:
                self._recheck.served(digest, client)
            return response
        finally:
            await answer.body.close()

    # ---- lists

    async def _tags(self, repository: Repository, route: Route, name: str) -> ReadyResponse:
        # Upstream would refuse it with an error that counts as a failure of upstream.
        page_size(route.parameter("n"))
        answer = await _bounded(self._cache.listings.tags(repository, route.path, dict(route.query)))
        return self._list(answer.body, {**answer.headers, **warning(answer.reason)}, answer.outcome, name)

    async def _referrers(self, repository: Repository, digest: Digest, route: Route, name: str) -> ReadyResponse:
        answer = await _bounded(self._cache.listings.referrers(repository, digest, route.path, dict(route.query)))
        return self._list(answer.body, {**answer.headers, **warning(answer.reason)}, answer.outcome, name)

    async def _repositories(self, route: Route, name: str) -> ReadyResponse:
        found = await self._cache.catalog.repositories()
        names, more = page(found, route.parameter("n"), route.parameter("last"))
        headers = {"Content-Type": "application/json"}
        if more:
            headers["Link"] = page_link(route.path, len(names), names[-1])
        return self._list(json.dumps({"repositories": names}).encode(), headers, Outcome.HIT, name)

    def _list(self, body: bytes, headers: dict[str, str], outcome: Outcome, name: str) -> ReadyResponse:
        rendered = head(200, {**headers, "Content-Length": str(len(body)), "X-Cache": outcome})
        return ReadyResponse(Rendered(200, rendered, body, outcome), name)

    # ---- errors and figures

    def _count(self, request: web.BaseRequest, response: ReadyResponse, started: float) -> None:
        """Count a request with the same outcome, status and bytes as the access log has."""
        target = request.get(TARGET)
        if target is not None and target.repository is not None:
            series = self._counts.series(target.repository.registry, target.kind, response.word, response.status)
            series.add(response.body_bytes(request.method), started)

    def _level(self, error: Exception, status: int) -> str:
        """The level at which an error is logged: once for all who wait for the same thing."""
        if not isinstance(error, MirrorError):
            return "info"
        known, error.is_logged = error.is_logged, True
        return "debug" if known else "warning" if status >= 500 else "info"

    def _failed(self, request: web.BaseRequest, error: Exception, name: str) -> ReadyResponse:
        if isinstance(error, ConnectionError):
            # Writing the response fails silently.
            return disconnected(name)
        target = request.get(TARGET)
        kind = target.kind if target is not None else ""
        if isinstance(error, PolicyDenied):
            self._denied.inc()
        if isinstance(error, TooManyDownloads):
            self._too_many.inc()
        problem = oci_errors.problem(error, kind)
        reason, path = f"{problem.status} {type(error).__name__}", without_secret(request.raw_path)[:300]
        if problem.status == 500:
            self._log.log("error", "request_failed", reason, path=path, exc_info=error)
        else:
            level = self._level(error, problem.status)
            fields = {"path": path, "status": problem.status, "cause": without_secret(str(error))}
            self._log.log(level, "request_refused", f"{reason} {level}", **fields)
        return problem_response(problem, name)
