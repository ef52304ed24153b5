"""The admin address's part about syncing: orders, and what became of them."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

import structlog
from aiohttp import web

from mirror.admin.json_body import json_body, read_body
from mirror.core.errors import InvalidInput
from mirror.core.platform import Platform
from mirror.listener.paging import page

log = structlog.get_logger(__name__)

_MAX_IMAGES = 1000
_MAX_PLATFORMS = 32
# Of a longer list the log has so many, and how many more there are.
_LOGGED = 10


class SyncOperations(Protocol):
    """What can be asked about syncing. Everything blocks for a moment and is called in a thread."""

    def order_sync(self, images: list[str]) -> str | None:
        """Order held and configured images to be looked at now, all if none are named; the order's name, None if too many wait.

        Raises:
            InvalidInput: one of the names.
        """
        ...

    def order_warm(self, images: list[str], platforms: list[str]) -> str | None:
        """Order images to be brought here. Like `order_sync`."""
        ...

    def sync_state(self) -> dict[str, Any]:
        """What runs, waits, has come to its end, and when the next scheduled run begins."""
        ...

    def sync_order(self, name: str) -> dict[str, Any] | None:
        """How far an order is, None if there is none of that name."""
        ...

    def sync_results(self) -> dict[str, dict[str, Any]]:
        """What came of each image last, by name."""
        ...


class SyncApi:
    """Handlers."""

    def __init__(self, operations: SyncOperations) -> None:
        self._operations = operations

    def add_to(self, application: web.Application) -> None:
        """Add the routes."""
        application.router.add_post("/api/v1/sync", self.sync)
        application.router.add_get("/api/v1/sync", self.state)
        application.router.add_get("/api/v1/sync/{order}", self.order)
        application.router.add_post("/api/v1/warm", self.warm)

    async def sync(self, request: web.Request) -> web.Response:
        """Have held images looked at now."""
        wanted = json_body(await read_body(request), {"images": list}, empty=True)
        images = _texts(wanted, "images", _MAX_IMAGES)
        name = await asyncio.to_thread(self._operations.order_sync, images)
        return _accepted(request, "sync", name, images)

    async def warm(self, request: web.Request) -> web.Response:
        """Have images brought here."""
        wanted = json_body(await read_body(request), {"images": list, "platforms": list}, required="images")
        images, platforms = _texts(wanted, "images", _MAX_IMAGES), _texts(wanted, "platforms", _MAX_PLATFORMS)
        if not images:
            raise web.HTTPBadRequest(text="images: has to name at least one")
        for platform in platforms:
            try:
                Platform.parse(platform)
            except InvalidInput as error:
                raise web.HTTPBadRequest(text=f"platforms: {error}") from error
        name = await asyncio.to_thread(self._operations.order_warm, images, platforms)
        return _accepted(request, "warm", name, images, platforms=platforms)

    async def state(self, request: web.Request) -> web.Response:
        """Everything, with the images' results in pages."""
        state = await asyncio.to_thread(self._operations.sync_state)
        results = await asyncio.to_thread(self._operations.sync_results)
        names, more = page(sorted(results), request.query.get("n"), request.query.get("last"))
        images = [{"image": name, **results[name]} for name in names]
        return web.json_response({**state, "images": images, "next_image": names[-1] if more else None})

    async def order(self, request: web.Request) -> web.Response:
        """One order."""
        found = await asyncio.to_thread(self._operations.sync_order, request.match_info["order"])
        if found is None:
            raise web.HTTPNotFound(text="there is no such order")
        return web.json_response(found)


def _accepted(request: web.Request, action: str, name: str | None, images: list[str], **details: object) -> web.Response:
    if name is None:
        raise web.HTTPServiceUnavailable(text="too many orders wait, or the index cannot be written; the log says which")
    named, more = images[:_LOGGED], len(images[_LOGGED:])
    log.info("audit", action=action, order=name, client=request.remote, images=named, more=more, **details)
    return web.json_response({"order": name}, status=202)


def _texts(wanted: dict[str, Any], key: str, most: int) -> list[str]:
    texts: list[Any] = wanted.get(key, [])
    if len(texts) > most or not all(isinstance(text, str) for text in texts):
        raise web.HTTPBadRequest(text=f"{key}: has to be a list of at most {most} texts")
    return texts
