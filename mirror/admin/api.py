"""The admin address: health and metrics for machines, and what operators do to the store."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from aiohttp import web

from mirror.admin.json_body import json_body, read_body
from mirror.admin.push_webhook import PushWebhook
from mirror.admin.sync_api import SyncApi, SyncOperations
from mirror.core.errors import InvalidInput
from mirror.core.names import ImagePattern
from mirror.core.units import parse_duration
from mirror.listener.admission import WEBHOOK_PREFIX
from mirror.listener.paging import page
from mirror.maintenance.purge import Order, Purged
from mirror.storage.images import Image

log = structlog.get_logger(__name__)

# What machines ask for that know neither the token nor the mirror's name.
OPEN = ("/healthz", "/readyz", "/metrics")
_PURGE_KEYS = {"match": str, "older_than": str, "soft": bool, "dry_run": bool}


@dataclass(frozen=True)
class Readiness:
    """Whether requests should be sent here.

    Attributes:
        ready: False while the store cannot be written, an upstream refuses the configured account, or the mirror is stopping.
        details: for people: why, and what does not make a mirror unready: the state of upstreams, and of files that it follows.
    """

    ready: bool
    details: dict[str, object]


class Operations(SyncOperations, Protocol):
    """What the admin address can have done. Everything blocks for a while and is called in a thread."""

    def readiness(self) -> Readiness: ...
    def metrics(self) -> bytes: ...
    def downloads(self) -> list[dict[str, Any]]: ...
    def images(self, pattern: ImagePattern | None) -> list[Image]: ...
    def purge(self, order: Order) -> Purged: ...
    def now(self) -> float: ...
    def pattern(self, text: str) -> ImagePattern: ...


def admin_application(operations: Operations, hooks: PushWebhook) -> web.Application:
    """The application of the admin address, for whom `AdminGuard` lets through."""
    api = _Api(operations)
    application = web.Application()
    application.router.add_get("/healthz", api.healthz)
    application.router.add_get("/readyz", api.readyz)
    application.router.add_get("/metrics", api.metrics)
    application.router.add_get("/api/v1/images", api.images)
    application.router.add_delete("/api/v1/images/{name:.+}", api.delete)
    application.router.add_post("/api/v1/purge", api.purge)
    application.router.add_get("/api/v1/downloads", api.downloads)
    SyncApi(operations).add_to(application)
    application.router.add_route("*", WEBHOOK_PREFIX + "{secret:.*}", hooks.at_admin)
    return application


class _Api:
    def __init__(self, operations: Operations) -> None:
        self._operations = operations

    async def healthz(self, _: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(self, _: web.Request) -> web.Response:
        state = await asyncio.to_thread(self._operations.readiness)
        body = json.dumps({"ready": state.ready, **state.details}, indent=2) + "\n"
        return web.Response(text=body, status=200 if state.ready else 503, content_type="application/json")

    async def metrics(self, _: web.Request) -> web.Response:
        body = await asyncio.to_thread(self._operations.metrics)
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def downloads(self, _: web.Request) -> web.Response:
        return web.json_response({"downloads": await asyncio.to_thread(self._operations.downloads)})

    async def images(self, request: web.Request) -> web.Response:
        match = request.query.get("match")
        with _naming("match"):
            pattern = self._operations.pattern(match) if match else None
        found = {_name(image): image for image in await asyncio.to_thread(self._operations.images, pattern)}
        names, more = page(sorted(found), request.query.get("n"), request.query.get("last"))
        return web.json_response({"images": [_describe(found[name]) for name in names], "next": names[-1] if more else None})

    async def delete(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        return await self._purge(request, Order(self._operations.pattern(name)))

    async def purge(self, request: web.Request) -> web.Response:
        wanted = json_body(await read_body(request), _PURGE_KEYS, required="match")
        before = None
        with _naming("older_than"):
            if "older_than" in wanted:
                before = self._operations.now() - parse_duration(wanted["older_than"])
        with _naming("match"):
            pattern = self._operations.pattern(wanted["match"])
        order = Order(pattern, before, wanted.get("soft", False), wanted.get("dry_run", False))
        return await self._purge(request, order)

    async def _purge(self, request: web.Request, order: Order) -> web.Response:
        purged = await asyncio.to_thread(self._operations.purge, order)
        answer = {"tags": purged.tags, "manifests": purged.manifests, "blobs": purged.blobs, "bytes": purged.size}
        log.info(
            "audit",
            action="purge",
            match=str(order.pattern),
            pulled_before=order.pulled_before,
            soft=order.soft,
            dry_run=order.dry_run,
            client=request.remote,
            **answer,
        )
        return web.json_response(answer)


@contextlib.contextmanager
def _naming(key: str) -> Iterator[None]:
    """Name the key of an order whose value cannot be understood."""
    try:
        yield
    except InvalidInput as error:
        raise web.HTTPBadRequest(text=f"{key}: {error}") from error


def _name(image: Image) -> str:
    return f"{image.repository}:{image.tag}" if image.tag is not None else f"{image.repository}@{image.digest}"


def _describe(image: Image) -> dict[str, Any]:
    return {
        "name": _name(image),
        "registry": image.repository.registry,
        "repository": image.repository.path,
        "tag": str(image.tag) if image.tag is not None else None,
        "digest": str(image.digest),
        "bytes": image.size,
        "pulled": image.pulled,
        "complete": image.complete,
    }
