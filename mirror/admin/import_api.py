"""The handler of the admin address for imports of bundles."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from mirror.admin.audit import log_import
from mirror.admin.openapi import Operation, describe
from mirror.admin.schemas import IMAGE, IMPORTED
from mirror.transfer.imports import Imports, TooManyImports

if TYPE_CHECKING:
    # Imported with the first import.
    from mirror.transfer.image_importer import ImportedImage

TAR: Final = "application/x-tar"
"""The media type of a bundle, also of a compressed one."""

_BLOCK_BYTES: Final = 1 << 20
# `docker save` writes nothing while it reads a large layer.
_STALL_S: Final = 300.0


class ImportApi:
    """The handler."""

    def __init__(self, imports: Imports) -> None:
        self._imports = imports

    def add_to(self, application: web.Application) -> None:
        """Add the route."""
        application.router.add_post("/api/v1/import", self.import_bundle)

    @describe(
        Operation(
            "Import a bundle: a tar of an OCI image layout or of `docker save`, plain or in gzip or zstd.",
            {200: IMPORTED},
            query={"as": (IMAGE, "The name of an image that has none in the bundle.")},
            takes=TAR,
        )
    )
    async def import_bundle(self, request: web.Request) -> web.Response:
        """Receive a bundle, and make its images visible."""
        try:
            async with self._imports.begin(request.query.get("as")) as running:
                async for block in _blocks(request):
                    await running.feed(block)
                try:
                    await running.finish()
                finally:
                    # A failure, or the stop of the mirror, leaves what is tagged by then.
                    _log(running.images, request.remote)
                sizes = {"bytes": running.bytes_stored, "bytes_held": running.bytes_held}
        except TooManyImports as error:
            raise web.HTTPTooManyRequests(text=str(error)) from error
        return web.json_response({"images": [_described(image) for image in running.images], **sizes})


async def _blocks(request: web.Request) -> AsyncIterator[bytes]:
    """Yield the body in blocks, so that a thread has something to do for each."""
    block = bytearray()
    while piece := await _piece(request):
        block += piece
        if len(block) >= _BLOCK_BYTES:
            yield bytes(block)
            block.clear()
    yield bytes(block)


async def _piece(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(_STALL_S):
            return await request.content.readany()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(text=f"nothing of the bundle has arrived for {_STALL_S:g} seconds") from error
    except (web.RequestPayloadError, HttpProcessingError) as error:
        raise web.HTTPBadRequest(text="the bundle cannot be read: the connection broke off") from error


def _log(images: list[ImportedImage], client: str | None) -> None:
    refused = [image.name for image in images if image.result == "refused"]
    log_import([image.name for image in images if image.result != "refused"], refused, client)


def _described(image: ImportedImage) -> dict[str, Any]:
    digests = {key: None if value is None else str(value) for key, value in (("digest", image.digest), ("old", image.old))}
    return {**asdict(image), **digests, "platforms": list(image.platforms), "left_out": list(image.left_out)}
