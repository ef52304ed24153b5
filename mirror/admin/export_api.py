"""The handlers of the admin address for exports: a bundle as a response, and how far each export is."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

import structlog
from aiohttp import web

from mirror.admin.audit import log_export
from mirror.admin.json_body import json_body, read_body
from mirror.admin.openapi import Operation, describe
from mirror.admin.schemas import EXPORT, EXPORTS, IMAGE, TEXT, Schema, array, record
from mirror.aio import on_bytes
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.platform import Platform
from mirror.download.reader import Span
from mirror.errors import AccessDenied, MirrorError, NotFound, Offline, PolicyDenied
from mirror.listener.responses import send_file
from mirror.listener.server import while_connected
from mirror.storage.threads import ThreadPools
from mirror.throttled_log import ThrottledLog
from mirror.tracing import request_id
from mirror.transfer.exporter import Export, Exporter, ExportOrder, ExportRefused, TooManyExports
from mirror.transfer.names import MAX_IMAGES, RequestedImage

log = structlog.get_logger(__name__)

# The digests of a hundred thousand blobs of an earlier bundle.
_MAX_BODY_BYTES: Final = 8 << 20
_MAX_PLATFORMS: Final = 32
_MAX_NAME: Final = 512
_PLATFORMS: Final[Schema] = {**array({**TEXT, "examples": ["linux/arm64"]}), "maxItems": _MAX_PLATFORMS}
_BODY: Final = record(
    images={
        **array({"anyOf": [IMAGE, record(image=IMAGE, platforms=_PLATFORMS)]}),
        "minItems": 1,
        "maxItems": MAX_IMAGES,
        "description": "Names, or globs over what is held; one with platforms of its own is an object.",
    },
    maybe={
        "platforms": {**_PLATFORMS, "description": "Of the images without their own; without any, those that are held."},
        "exclude": {**array(TEXT), "description": "Digests of layers that an earlier bundle has."},
    },
)
_TAR: Final = "application/x-tar"
# The first that fits; anything else is an outage.
_STATUSES: Final = {
    InvalidInput: web.HTTPBadRequest,
    Offline: web.HTTPConflict,
    PolicyDenied: web.HTTPForbidden,
    NotFound: web.HTTPNotFound,
    AccessDenied: web.HTTPNotFound,
}


class ExportApi:
    """The handlers."""

    def __init__(self, exporter: Exporter, threads: ThreadPools) -> None:
        self._exporter = exporter
        self._threads = threads
        self._log = ThrottledLog(log)

    def add_to(self, application: web.Application) -> None:
        """Add the routes."""
        application.router.add_post("/api/v1/export", self.export)
        application.router.add_get("/api/v1/export", self.states)
        application.router.add_get("/api/v1/export/{name}", self.state)

    @describe(
        Operation("Export images as one tar.", {200: None}, body=_BODY, errors=(404, 409), media_types=(_TAR,)),
    )
    async def export(self, request: web.Request) -> web.StreamResponse:
        """Send a bundle. Its length is known before its first byte; one that cannot be completed ends short."""
        body = await read_body(request, _MAX_BODY_BYTES)
        order = await on_bytes(len(body), None, _order, body, request_id.get(), request.remote or "")
        response: web.StreamResponse | None = None
        try:
            async with self._exporter.run(order) as export:
                log_export(order, request.remote)
                async with while_connected(request):
                    size = await export.prepare()
                response = _response(size)
                await response.prepare(request)
                await self._send(request, response, export)
                return response
        except ExportRefused as error:
            raise _refusal(error) from error
        except TooManyExports as error:
            raise web.HTTPTooManyRequests(text=str(error), headers={"Retry-After": "10"}) from error
        except MirrorError as error:
            if response is None:
                raise
            self._log.log("warning", "export_ended_short", export=order.name, cause=str(error))
            return response

    @describe(Operation("The running exports, and those that ended within a day.", {200: EXPORTS}))
    async def states(self, _: web.Request) -> web.Response:
        """Return the states of all exports."""
        return web.json_response({"exports": await asyncio.to_thread(self._exporter.states)})

    @describe(Operation("How far an export is, and afterwards what its bundle has.", {200: EXPORT}, errors=(404,)))
    async def state(self, request: web.Request) -> web.Response:
        """Return the state of one export."""
        name = request.match_info["name"]
        found = [row for row in await asyncio.to_thread(self._exporter.states) if row["name"] == name]
        if not found:
            raise web.HTTPNotFound(text="there is no such export")
        return web.json_response(found[0])

    async def _send(self, request: web.Request, response: web.StreamResponse, export: Export) -> None:
        """Send the pieces. After a failure the connection ends, so that the client notices that the bundle is cut."""
        try:
            with contextlib.closing(export.pieces()) as pieces:
                for piece in pieces:
                    if isinstance(piece, bytes):
                        await response.write(piece)
                        export.sent += len(piece)
                    elif piece.size:
                        await send_file(request, export, Span(piece.file, 0, piece.size), self._threads.serve)
        except BaseException:
            response.force_close()
            raise


def _response(size: int) -> web.StreamResponse:
    """Return the response with a bundle of so many bytes, without its body."""
    headers = {"Content-Type": _TAR, "Content-Disposition": 'attachment; filename="bundle.tar"'}
    response = web.StreamResponse(headers={**headers, "Server": "registry-mirror", "X-Request-Id": request_id.get()})
    response.content_length = size
    return response


_KEYS: Final = {"images": list, "platforms": list, "exclude": list}


def _order(raw: bytes, name: str, client: str) -> ExportOrder:
    """Read what is to be exported."""
    body = json_body(raw, _KEYS, required="images")
    platforms = _platforms(body.get("platforms", []), "platforms")
    images = [_image(value, platforms) for value in body["images"]]
    if not 0 < len(images) <= MAX_IMAGES:
        raise web.HTTPBadRequest(text=f"images: has to name from 1 to {MAX_IMAGES}")
    try:
        exclude = frozenset(Digest.parse(str(text)) for text in body.get("exclude", []))
    except InvalidInput as error:
        raise web.HTTPBadRequest(text=f"exclude: {error}") from error
    return ExportOrder(name, tuple(images), exclude, client)


def _image(value: Any, platforms: tuple[Platform, ...]) -> RequestedImage:
    if isinstance(value, str):
        value = {"image": value}
    if not isinstance(value, dict) or value.keys() - {"image", "platforms"} or not isinstance(value.get("image"), str):
        raise web.HTTPBadRequest(text="images: each has to be a text, or an object with `image` and `platforms`")
    text = value["image"]
    if len(text) > _MAX_NAME or not text.isprintable():
        raise web.HTTPBadRequest(text=f"images: {text[:_MAX_NAME]!r} is no name of an image")
    return RequestedImage(text, _platforms(value.get("platforms", []), "images: platforms") or platforms)


def _platforms(texts: Any, key: str) -> tuple[Platform, ...]:
    if not isinstance(texts, list) or len(texts) > _MAX_PLATFORMS or not all(isinstance(text, str) for text in texts):
        raise web.HTTPBadRequest(text=f"{key}: has to be a list of at most {_MAX_PLATFORMS} texts")
    try:
        return tuple(dict.fromkeys(map(Platform.parse, texts)))
    except InvalidInput as error:
        raise web.HTTPBadRequest(text=f"{key}: {error}") from error


def _refusal(error: ExportRefused) -> web.HTTPException:
    """Return the answer to an export that cannot be made; its status is that of the first problem."""
    first = next(iter(error.problems.values()))
    kind = next((status for cause, status in _STATUSES.items() if isinstance(first, cause)), web.HTTPServiceUnavailable)
    return kind(text=str(error))
