"""Reads the bodies of requests: small, within a time limit, and for the admin API JSON objects with known keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

MAX_IMAGES = 1000
"""Images that one request may name."""
_MAX_BYTES = 64 << 10
# For the whole body.
_BODY_TIMEOUT_S = 10.0

_NAMES = {str: "a text", bool: "true or false", list: "a list"}


async def read_body(request: web.BaseRequest, limit: int = _MAX_BYTES) -> bytes:
    """Read the whole of a small body, of at most `limit` bytes.

    Raises:
        web.HTTPException: it is too long, does not arrive in time, or cannot be read.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            # A body that is announced as too long is refused before it arrives.
            announced = request.content_length or 0
            while len(body) <= limit and announced <= limit:
                piece = await request.content.readany()
                if not piece:
                    return bytes(body)
                body += piece
    except TimeoutError as error:
        raise web.HTTPRequestTimeout(text=f"the body has to arrive within {_BODY_TIMEOUT_S:g} seconds") from error
    except (web.RequestPayloadError, HttpProcessingError) as error:
        raise web.HTTPBadRequest(text="the body cannot be read") from error
    raise web.HTTPRequestEntityTooLarge(limit, len(body), text=f"at most {limit} bytes are accepted")


def json_body(body: bytes, keys: Mapping[str, type], *, required: str | None = None, empty: bool = False) -> dict[str, Any]:
    """Parse a body that may have these keys, each with a value of its type.

    Args:
        required: a key that must be present.
        empty: accept an empty body as `{}`.

    Raises:
        web.HTTPBadRequest: the body is invalid; the message names the key.
    """
    if empty and not body.strip():
        return {}
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise web.HTTPBadRequest(text="the body has to be JSON") from error
    if not isinstance(parsed, dict):
        raise web.HTTPBadRequest(text="the body has to be a JSON object")
    for key, value in parsed.items():
        if key not in keys:
            raise web.HTTPBadRequest(text=f"{key[:100]}: there is no such key; there are {', '.join(keys)}")
        if not isinstance(value, keys[key]):
            raise web.HTTPBadRequest(text=f"{key}: has to be {_NAMES[keys[key]]}")
    if required is not None and required not in parsed:
        raise web.HTTPBadRequest(text=f"{required}: is required")
    return parsed


def texts(body: Mapping[str, Any], key: str, most: int) -> list[str]:
    """Return the list of texts under a key; empty without it.

    Raises:
        web.HTTPBadRequest: it is something else, or longer than `most`.
    """
    found: list[Any] = body.get(key, [])
    if len(found) > most or not all(isinstance(text, str) for text in found):
        raise web.HTTPBadRequest(text=f"{key}: has to be a list of at most {most} texts")
    return found
