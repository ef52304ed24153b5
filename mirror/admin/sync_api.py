"""The handlers of the admin address for sync jobs, which the API calls orders."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

from aiohttp import web

from mirror.admin.audit import log_cancel, log_job
from mirror.admin.json_body import MAX_IMAGES, json_body, read_body, texts
from mirror.admin.openapi import PAGES, Operation, describe
from mirror.admin.schemas import IMAGE, JOB, JOBS, ORDERED, TEXT, array, record
from mirror.admin.sync_operations import NoSuchJob, NotAdded, OrdersUnknown, SyncOperations
from mirror.core.errors import InvalidInput
from mirror.core.paging import page
from mirror.core.platform import Platform
from mirror.sync.job import Given
from mirror.sync.job_states import UNFINISHED

_MAX_PLATFORMS = 32
_SYNC_BODY = record(maybe={"images": {**array(IMAGE), "maxItems": MAX_IMAGES}})
_WARM_BODY = record(
    images={**array(IMAGE), "minItems": 1, "maxItems": MAX_IMAGES},
    maybe={"platforms": {**array({**TEXT, "examples": ["linux/arm64"]}), "maxItems": _MAX_PLATFORMS}},
)
# A job ends within a second after its cancellation, unless the process that runs it hangs or has just died.
_CANCEL_TIMEOUT_S, _CANCEL_POLL_INTERVAL_S = 10.0, 0.1


class SyncApi:
    """The handlers."""

    def __init__(self, operations: SyncOperations) -> None:
        self._operations = operations

    def add_to(self, application: web.Application) -> None:
        """Add the routes."""
        application.router.add_post("/api/v1/sync", self.sync)
        application.router.add_get("/api/v1/sync", self.state)
        application.router.add_get("/api/v1/sync/{order:.+}", self.order)
        application.router.add_delete("/api/v1/sync/{order:.+}", self.cancel)
        application.router.add_post("/api/v1/warm", self.warm)

    @describe(Operation("Check cached and configured images now.", {202: ORDERED}, body=_SYNC_BODY, errors=(409,)))
    async def sync(self, request: web.Request) -> web.Response:
        """Check cached and configured images now."""
        body = json_body(await read_body(request), {"images": list}, empty=True)
        images = texts(body, "images", MAX_IMAGES)
        with _unavailable():
            given = await self._operations.sync(images)
        return self._accepted(request, "sync", given, images)

    @describe(Operation("Fetch images before a client pulls them.", {202: ORDERED}, body=_WARM_BODY, errors=(409,)))
    async def warm(self, request: web.Request) -> web.Response:
        """Fetch images."""
        body = json_body(await read_body(request), {"images": list, "platforms": list}, required="images")
        images, platforms = texts(body, "images", MAX_IMAGES), texts(body, "platforms", _MAX_PLATFORMS)
        if not images:
            raise web.HTTPBadRequest(text="images: has to name at least one")
        for platform in platforms:
            try:
                Platform.parse(platform)
            except InvalidInput as error:
                raise web.HTTPBadRequest(text=f"platforms: {error}") from error
        with _unavailable():
            given = await self._operations.warm(images, platforms)
        return self._accepted(request, "warm", given, images, platforms=platforms)

    @describe(Operation("All orders, and the last result of each image, in pages.", {200: JOBS}, query=PAGES))
    async def state(self, request: web.Request) -> web.Response:
        """Return the state of all jobs, with the images' results in pages."""
        state = await self._operations.whole_state()
        results = await asyncio.to_thread(self._operations.results)
        names, more = page(sorted(results), request.query.get("n"), request.query.get("last"))
        images = [{"image": name, **results[name]} for name in names]
        return web.json_response({**state, "images": images, "next_image": names[-1] if more else None})

    @describe(Operation("The state of an order.", {200: JOB}, errors=(404,)))
    async def order(self, request: web.Request) -> web.Response:
        """Return the state of one job."""
        with _unavailable():
            found = await self._operations.job(request.match_info["order"])
        if found is None:
            raise web.HTTPNotFound(text="there is no such order")
        return web.json_response(found)

    @describe(Operation("Cancel an order; 202 if it has not ended yet.", {200: JOB, 202: JOB}, errors=(404, 409)))
    async def cancel(self, request: web.Request) -> web.Response:
        """Cancel a job, and return what was done; 202 with its state if it has not ended within some seconds."""
        name = request.match_info["order"]
        try:
            with _unavailable():
                await self._operations.cancel(name)
        except NoSuchJob as error:
            raise (web.HTTPConflict if error.ended else web.HTTPNotFound)(text=str(error)) from error
        log_cancel(name, request.remote)
        state = await self._end_of(name)
        return web.json_response(state, status=202 if state["result"] in UNFINISHED else 200)

    def _accepted(self, request: web.Request, action: str, given: Given, images: list[str], **details: object) -> web.Response:
        log_job(action, given.name, images, request.remote, **details)
        of_cluster = {} if self._operations.cluster is None else {"untold": given.untold}
        return web.json_response({"order": given.name, **of_cluster}, status=202)

    async def _end_of(self, name: str) -> dict[str, Any]:
        """Return the state of a job that is being cancelled when it has ended, or after some seconds."""
        deadline = time.monotonic() + _CANCEL_TIMEOUT_S
        while True:
            with _unavailable():
                state = await self._operations.job(name) or {"name": name, "result": "running"}
            if state["result"] not in UNFINISHED or time.monotonic() >= deadline:
                return state
            await asyncio.sleep(_CANCEL_POLL_INTERVAL_S)


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    """Answer 503 where an order cannot be taken, or its state is not known for now."""
    try:
        yield
    except (NotAdded, OrdersUnknown) as error:
        raise web.HTTPServiceUnavailable(text=str(error)) from error
