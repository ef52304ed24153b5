"""The handler of the admin address that lets tags through which are held back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from aiohttp import web

from mirror.admin.audit import log_release
from mirror.admin.held_back import HeldBack, NothingHeldBack
from mirror.admin.json_body import MAX_IMAGES, json_body, read_body, texts
from mirror.admin.openapi import Operation, describe
from mirror.admin.schemas import IMAGE, RELEASED, array, record
from mirror.admin.sync_operations import NotAdded, SyncOperations
from mirror.cache.held_tags import HeldImage
from mirror.errors import Offline

_BODY = record(images={**array(IMAGE), "minItems": 1, "maxItems": MAX_IMAGES})


class ReleaseApi:
    """The handler."""

    def __init__(self, held_back: HeldBack, sync: SyncOperations) -> None:
        self._held_back = held_back
        self._sync = sync

    def add_to(self, application: web.Application) -> None:
        """Add the route."""
        application.router.add_post("/api/v1/release", self.release)

    @describe(Operation("Let tags through that are held back.", {200: RELEASED}, body=_BODY, errors=(404,)))
    async def release(self, request: web.Request) -> web.Response:
        """Release images; 404, and nothing is released, if one of the names matches nothing that is held back."""
        body = json_body(await read_body(request), {"images": list}, required="images")
        images = texts(body, "images", MAX_IMAGES)
        if not images:
            raise web.HTTPBadRequest(text="images: has to name at least one")
        try:
            found = await asyncio.to_thread(self._held_back.matching, images)
        except NothingHeldBack as error:
            raise web.HTTPNotFound(text=str(error)) from error
        released, order = await release(self._held_back, self._sync, found, request.remote)
        named = [{"image": str(image), "digest": str(image.digest)} for image in released]
        return web.json_response({"released": named, "order": order})


async def release(
    held_back: HeldBack, sync: SyncOperations, images: Sequence[HeldImage], client: str | None
) -> tuple[list[HeldImage], str | None]:
    """Release images for an operator, and have the resync fetch those of cached tags.

    Returns what was still held back, and the name of the order; None if there is none.
    """
    released = await held_back.release(images)
    order = None
    if released:
        log_release([f"{image} to {image.digest}" for image in released], client)
    cached = [str(image) for image in released if image.is_cached]
    if cached:
        try:
            order = (await sync.sync(cached)).name
        except (Offline, NotAdded):
            # The tags follow when the registry is online again, or at the next resync.
            order = None
    return released, order
