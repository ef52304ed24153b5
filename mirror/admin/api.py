"""The handlers of the admin address: health, metrics, images, purges, downloads."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from aiohttp import web
from prometheus_client.exposition import choose_encoder, gzip_accepted

from mirror.admin.audit import log_purge, purge_counts
from mirror.admin.cluster_nodes import with_nodes
from mirror.admin.export_api import ExportApi
from mirror.admin.image_list import ImageList
from mirror.admin.import_api import ImportApi
from mirror.admin.json_body import json_body, read_body
from mirror.admin.nodes_api import NodesApi
from mirror.admin.openapi import PAGES, Operation, describe, document
from mirror.admin.operations import AdminOperations
from mirror.admin.page.site import StatusPage
from mirror.admin.purge_figures import figures_by_node
from mirror.admin.push_webhook import PushWebhook
from mirror.admin.release_api import ReleaseApi
from mirror.admin.schemas import (
    COUNT,
    DOWNLOADS,
    EXPLANATION,
    FLAG,
    IMAGE,
    IMAGES,
    PURGED,
    READINESS,
    SEARCHED,
    STATUS,
    TEXT,
    record,
)
from mirror.admin.sync_api import SyncApi
from mirror.admin.sync_operations import SyncOperations
from mirror.core.errors import InvalidInput
from mirror.core.paging import SearchPage
from mirror.core.units import parse_duration
from mirror.errors import NotFound
from mirror.listener.admission import WEBHOOK_PREFIX
from mirror.maintenance.purge import PurgeRequest

# Paths that need no token and accept any Host: load balancers and Prometheus know neither.
OPEN = ("/healthz", "/readyz", "/metrics")
_PURGE_KEYS = {"match": str, "older_than": str, "soft": bool, "dry_run": bool, "wait": bool}
_PURGE_BODY = record(
    match=IMAGE, maybe={"older_than": {**TEXT, "examples": ["30d"]}, "soft": FLAG, "dry_run": FLAG, "wait": FLAG}
)
_FROM_1 = {**COUNT, "minimum": 1, "maximum": 999_999_999}
_METRICS_TYPES = ("text/plain", "application/openmetrics-text")


def admin_application(
    operations: AdminOperations,
    sync: SyncOperations,
    webhook: PushWebhook,
    page: StatusPage,
    transfers: Sequence[ExportApi | ImportApi],
) -> web.Application:
    """Return the application of the admin address. It does not authenticate: `AdminGuard` does."""
    application = web.Application()
    api = _Api(operations, application)
    application.on_cleanup.append(api.close)
    application.router.add_get("/healthz", api.healthz)
    application.router.add_get("/readyz", api.readyz)
    application.router.add_get("/metrics", api.metrics)
    application.router.add_get("/api/v1/images", api.images)
    application.router.add_delete("/api/v1/images/{name:.+}", api.delete)
    application.router.add_post("/api/v1/purge", api.purge)
    application.router.add_get("/api/v1/downloads", api.downloads)
    application.router.add_get("/api/v1/explain", api.explain)
    application.router.add_get("/api/v1/status", api.status)
    application.router.add_get("/api/v1/search", api.search)
    application.router.add_get("/openapi.json", api.openapi)
    SyncApi(sync).add_to(application)
    ReleaseApi(operations.held_back, sync).add_to(application)
    for transfer in transfers:
        transfer.add_to(application)
    page.add_to(application)
    NodesApi(operations).add_to(application)
    application.router.add_route("*", WEBHOOK_PREFIX + "{secret:.*}", webhook.at_admin)
    return application


class _Api:
    def __init__(self, operations: AdminOperations, application: web.Application) -> None:
        self._operations = operations
        self._application = application
        self._list = ImageList(operations)
        # One at a time: threads that purge a large store are not there for health checks.
        self._purges = ThreadPoolExecutor(1, "purge")

    async def close(self, _: web.Application) -> None:
        """Drop what waits for its thread."""
        self._list.close()
        self._purges.shutdown(wait=False, cancel_futures=True)

    @describe(Operation("Whether the process answers.", {200: None}, media_types=("text/plain",), is_open=True))
    async def healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    @describe(Operation("Whether requests should be sent here; 503 if not.", {200: READINESS, 503: READINESS}, is_open=True))
    async def readyz(self, _: web.Request) -> web.Response:
        state = await asyncio.to_thread(self._operations.readiness)
        body = json.dumps({"ready": state.ready, **state.details}, indent=2) + "\n"
        return web.Response(text=body, status=200 if state.ready else 503, content_type="application/json")

    @describe(Operation("The metrics of all processes.", {200: None}, media_types=_METRICS_TYPES, is_open=True))
    async def metrics(self, request: web.Request) -> web.Response:
        """In the format and the compression that the scraper accepts."""
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        headers = {"Content-Type": content_type, "Vary": "Accept, Accept-Encoding"}
        body = await asyncio.to_thread(self._operations.metrics, encode)
        if gzip_accepted(request.headers.get("Accept-Encoding", "")):
            headers["Content-Encoding"] = "gzip"
            body = await asyncio.to_thread(gzip.compress, body, 5, mtime=0)
        return web.Response(body=body, headers=headers)

    @describe(Operation("The running downloads, with the clients that read them.", {200: DOWNLOADS}))
    async def downloads(self, _: web.Request) -> web.Response:
        return web.json_response({"downloads": await asyncio.to_thread(self._operations.downloads)})

    @describe(
        Operation(
            "The cached images, in pages.",
            {200: IMAGES},
            query={"match": (IMAGE, "Which images, as REPOSITORY[:TAG|@DIGEST] with globs; all without it."), **PAGES},
        )
    )
    async def images(self, request: web.Request) -> web.Response:
        match = request.query.get("match")
        with _named("match"):
            pattern = self._operations.pattern(match) if match else None
        answer = await self._list.page(pattern, request.query.get("n"), request.query.get("last"))
        return web.json_response(answer)

    @describe(
        Operation(
            "The repositories whose name contains a text, the best matches first.",
            {200: SEARCHED},
            query={
                "q": (TEXT, "A part of the name, in any case; all without it."),
                "n": (
                    {**COUNT, "minimum": 1, "maximum": 999_999_999},
                    "The number of results of a page, 25 by default, at most 100.",
                ),
                "page": (_FROM_1, "The number of the page, from 1."),
            },
        )
    )
    async def search(self, request: web.Request) -> web.Response:
        asked = SearchPage.parse(request.query.get("n"), request.query.get("page"))
        found, count = await self._operations.catalog.search(request.query.get("q", ""), asked.number, asked.size)
        return web.json_response({"results": [asdict(one) for one in found], "count": count})

    @describe(Operation("The figures of the status screen.", {200: STATUS}))
    async def status(self, _: web.Request) -> web.Response:
        operations = self._operations
        return web.json_response(await with_nodes(await asyncio.to_thread(operations.status), operations.node))

    @describe(
        Operation(
            "What is held of an image, and what a pull of it would do now.",
            {200: EXPLANATION},
            query={"image": (IMAGE, "The image; required.")},
            errors=(404,),
        )
    )
    async def explain(self, request: web.Request) -> web.Response:
        image = request.query.get("image")
        if not image:
            raise web.HTTPBadRequest(text="image: is required, for example ?image=nginx:1.27")
        with _named("image"):
            try:
                return web.json_response(await self._operations.explain(image))
            except NotFound as error:
                raise web.HTTPNotFound(text=str(error)) from error

    @describe(Operation("Purge images.", {200: PURGED}, errors=(404,)))
    async def delete(self, request: web.Request) -> web.Response:
        pattern, client = self._operations.pattern(request.match_info["name"]), request.remote or ""
        return await self._purge(request, PurgeRequest(pattern, client=client))

    @describe(Operation("Purge images, or have them checked at the next pull.", {200: PURGED}, body=_PURGE_BODY))
    async def purge(self, request: web.Request) -> web.Response:
        body = json_body(await read_body(request), _PURGE_KEYS, required="match")
        before = None
        with _named("older_than"):
            if "older_than" in body:
                before = time.time() - parse_duration(body["older_than"])
        with _named("match"):
            pattern = self._operations.pattern(body["match"])
        soft, dry_run, client = body.get("soft", False), body.get("dry_run", False), request.remote or ""
        purge_request = PurgeRequest(pattern, before, soft, dry_run, client)
        return await self._purge(request, purge_request, wait=body.get("wait", False))

    @describe(Operation("This description.", {200: {"type": "object"}}))
    async def openapi(self, _: web.Request) -> web.Response:
        return web.json_response(document(self._application))

    async def _purge(self, request: web.Request, purge_request: PurgeRequest, *, wait: bool = False) -> web.Response:
        """Purge this node, and have the others of a cluster do so; wait for those if that is wanted."""
        loop, cluster = asyncio.get_running_loop(), None if purge_request.dry_run else self._operations.cluster_purge
        order = None if cluster is None else await cluster.tell(purge_request)
        purged = await loop.run_in_executor(self._purges, self._operations.purge, purge_request)
        log_purge(purge_request, purged, request.remote)
        nodes = {} if cluster is None else figures_by_node(await cluster.results(order, purged, wait=wait))
        return web.json_response({**purge_counts(purged), "images": purged.images, **nodes})


@contextlib.contextmanager
def _named(key: str) -> Iterator[None]:
    """Answer 400 with the key's name if its value is invalid."""
    try:
        yield
    except InvalidInput as error:
        raise web.HTTPBadRequest(text=f"{key}: {error}") from error
