"""Bodies of orders to the admin address: JSON objects with known keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

_NAMES = {str: "a text", bool: "true or false", list: "a list"}


def order_body(body: bytes, keys: Mapping[str, type], *, required: str | None = None, empty: bool = False) -> dict[str, Any]:
    """Read a body that may have these keys, each with a value of its type.

    Args:
        required: a key that has to be there.
        empty: whether no body is as good as `{}`.

    Raises:
        web.HTTPBadRequest: what is wrong, with the key's name.
    """
    if empty and not body.strip():
        return {}
    try:
        wanted = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise web.HTTPBadRequest(text="the body has to be JSON") from error
    if not isinstance(wanted, dict):
        raise web.HTTPBadRequest(text="the body has to be a JSON object")
    for key, value in wanted.items():
        if key not in keys:
            raise web.HTTPBadRequest(text=f"{key[:100]}: there is no such key; there are {', '.join(keys)}")
        if not isinstance(value, keys[key]):
            raise web.HTTPBadRequest(text=f"{key}: has to be {_NAMES[keys[key]]}")
    if required is not None and required not in wanted:
        raise web.HTTPBadRequest(text=f"{required}: has to say which images")
    return wanted
