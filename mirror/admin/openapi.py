"""The description of the admin API (OpenAPI 3.1), gathered from the handlers that it describes.

A handler states beside its code what it takes and answers, by `describe`; the paths and methods are those of the router.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from aiohttp import web

from mirror import __version__
from mirror.admin.schemas import COUNT, ERROR, TEXT, Schema

H = TypeVar("H", bound=Callable[..., Any])

JSON: Final = "application/json"
"""The media type that an operation takes unless it says otherwise."""

_ATTRIBUTE: Final = "admin_operation"
_ERRORS: Final = {
    400: "The request is invalid; the message names the key.",
    401: "A token is configured, and the request has none or a wrong one.",
    403: "The request comes from a web page of another origin.",
    404: "There is nothing of that name.",
    405: "Another method is allowed.",
    408: "The body has not arrived in time.",
    409: "The order has ended, the registry is offline, or the mirror is no node of a cluster.",
    413: "The body is too long.",
    415: "The content type is not that of the body.",
    421: "The Host header names another host.",
    429: "The client has too many requests or connections.",
    503: "The store or the index cannot be used, too much waits, or the mirror has too many connections.",
}
# Of every operation, of those with a token, of those that change something, and of those with a body.
_EVERY, _WITH_TOKEN, _CHANGES, _WITH_BODY = (400, 421, 429, 503), (401,), (403, 415), (408, 413)


@dataclass(frozen=True)
class Operation:
    """What a handler takes and answers.

    Attributes:
        responses: the schema of each status that is no error; None for text.
        query: parameters with their descriptions.
        body: the schema of the JSON in the request.
        takes: the media type of the request; of one without `body` that is not JSON, the bytes are the body.
        errors: further statuses of errors.
        media_types: of an answer that is no JSON.
        is_open: it needs no token.
    """

    summary: str
    responses: Mapping[int, Schema | None]
    query: Mapping[str, tuple[Schema, str]] = field(default_factory=dict)
    body: Schema | None = None
    takes: str = JSON
    errors: tuple[int, ...] = ()
    media_types: tuple[str, ...] = (JSON,)
    is_open: bool = False


PAGES: Final[dict[str, tuple[Schema, str]]] = {
    "n": ({**COUNT, "maximum": 999_999_999}, "The number of entries of a page, at most 1000."),
    "last": (TEXT, "The last entry of the page before."),
}
"""The parameters of a list that comes in pages."""


def operation_of(handler: object) -> Operation | None:
    """Return the description of a handler; None if it has none."""
    found = getattr(handler, _ATTRIBUTE, None)
    return found if isinstance(found, Operation) else None


def describe(operation: Operation) -> Callable[[H], H]:
    """Return a decorator that describes a handler."""

    def described(handler: H) -> H:
        setattr(handler, _ATTRIBUTE, operation)
        return handler

    return described


def document(application: web.Application) -> dict[str, Any]:
    """Return the description of the routes whose handlers are described."""
    paths: dict[str, dict[str, Any]] = {}
    for route in application.router.routes():
        operation = operation_of(route.handler)
        # GET adds a route for HEAD.
        if operation is None or route.resource is None or route.method == "HEAD":
            continue
        method = "post" if route.method == "*" else route.method.lower()
        paths.setdefault(route.resource.canonical, {})[method] = _operation(operation, route.resource.canonical, method)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "registry-mirror, admin API",
            "version": __version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {
            "schemas": {"Error": ERROR},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation, path: str, method: str) -> dict[str, Any]:
    names = re.findall(r"{(\w+)}", path)
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": re.sub(r"\W+", "_", f"{method}{path}").strip("_"),
        "parameters": [
            *(_in_path(name) for name in names),
            *(
                {"name": name, "in": "query", "schema": schema, "description": text}
                for name, (schema, text) in operation.query.items()
            ),
        ],
        "responses": {
            **{str(status): _answer(operation, schema) for status, schema in operation.responses.items()},
            **{str(status): _error(status) for status in _errors(operation, method) if status not in operation.responses},
        },
        "security": [] if operation.is_open else [{}, {"token": []}],
    }
    if operation.body is not None:
        required = bool(operation.body.get("required"))
        described["requestBody"] = {"required": required, "content": {JSON: {"schema": operation.body}}}
    elif operation.takes != JSON:
        # Bytes have no schema (OpenAPI 3.1, Considerations for File Uploads).
        described["requestBody"] = {"required": True, "content": {operation.takes: {}}}
    return described


def _in_path(name: str) -> dict[str, Any]:
    schema = {**TEXT, "minLength": 1}
    return {"name": name, "in": "path", "required": True, "schema": schema, "description": "May contain slashes."}


def _errors(operation: Operation, method: str) -> list[int]:
    return sorted(
        {
            *_EVERY,
            *operation.errors,
            *(() if operation.is_open else _WITH_TOKEN),
            *(_CHANGES if method in ("post", "delete") else ()),
            *(_WITH_BODY if operation.body is not None or operation.takes != JSON else ()),
        }
    )


def _answer(operation: Operation, schema: Schema | None) -> dict[str, Any]:
    return {
        "description": operation.summary,
        "content": {media_type: {"schema": TEXT if schema is None else schema} for media_type in operation.media_types},
    }


def _error(status: int) -> dict[str, Any]:
    return {
        "description": _ERRORS[status],
        "content": {JSON: {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
