"""Reads the forms of the page."""

from __future__ import annotations

from urllib.parse import parse_qs

from aiohttp import web

from mirror.admin.json_body import read_body
from mirror.core.media import strip_parameters

_MAX_FIELDS = 20


async def read_form(request: web.Request) -> dict[str, str]:
    """Return the fields of a form, the first of each name.

    Raises:
        web.HTTPException: it is no form, too long, or does not arrive in time.
    """
    if strip_parameters(request.headers.get("Content-Type", "")) != "application/x-www-form-urlencoded":
        raise web.HTTPUnsupportedMediaType(text="a form is expected here; scripts use the API, with application/json")
    body = await read_body(request)
    try:
        fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=_MAX_FIELDS)
    except ValueError as error:
        raise web.HTTPBadRequest(text="the form cannot be read") from error
    return {name: values[0] for name, values in fields.items()}
