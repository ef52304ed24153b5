"""The access log: one line per request at the registry address, with its client, its subject and its answer.

The event loop only notes the fields. `put` renders and writes them elsewhere, because a line costs more than a hit.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Final, Literal, TypeAlias

from aiohttp import web

from mirror.core.digest import Digest
from mirror.core.redaction import without_secret
from mirror.listener.basic_auth import user_of
from mirror.listener.inline import InlineRequest
from mirror.listener.responses import RESPONSE, TARGET, ReadyResponse, Rendered, Target
from mirror.metrics.request_counts import ERROR
from mirror.tracing import UpstreamNote, request_id, upstream_note

Put: TypeAlias = Callable[[dict[str, object]], None]
USER: Final = web.RequestKey("user", bool)
"""The key of a request under which admission keeps whether its credentials are right."""

_MAX_TEXT: Final = 300
# The client has disconnected before an answer.
_DISCONNECTED: Final = 499


class AccessLog:
    """Logs requests.

    Attributes:
        logs_any: requests are looked at.
        logs_all: requests without errors are logged, too.

    Args:
        put: takes the fields of a line, quickly.
    """

    def __init__(self, put: Put = lambda _: None) -> None:
        self.logs_any = self.logs_all = False
        self._put = put

    def configure(self, access: Literal["off", "errors", "all"]) -> None:
        """Choose the requests to log: none, those with a status from 400 or a body that ends short, or all."""
        self.logs_any, self.logs_all = access != "off", access == "all"

    async def watch(
        self, request: web.BaseRequest, handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Handle a request, and log it."""
        started = time.perf_counter()
        note = UpstreamNote()
        upstream_note.set(note)
        try:
            response = await handler(request)
        except BaseException as error:
            gone = isinstance(error, ConnectionError | asyncio.CancelledError)
            cut = {"outcome": ERROR, "status": _DISCONNECTED if gone else 500, "bytes": 0}
            begun = request.get(RESPONSE)
            answer = cut if begun is None else _answer(request, begun, started)
            self._log(request, begun, started, {**answer, "cause": type(error).__name__, "upstream": note.name})
            raise
        is_short = isinstance(response, ReadyResponse) and response.is_short
        if self.logs_all or response.status >= 400 or is_short:
            self._log(request, response, started, {**_answer(request, response, started), "upstream": note.name})
        return response

    def malformed(self, request: web.BaseRequest, status: int, cause: str) -> None:
        """Log a request that could not be parsed. Nothing of it is known for sure."""
        if self.logs_any:
            fields = {"client": request.remote, "status": status, "bytes": 0, "cause": cause, "request": request_id.get()}
            self._write({"outcome": ERROR, **fields})

    def inline(self, request: InlineRequest, rendered: Rendered, client: str, identifier: str, started: float) -> None:
        """Log a request that was answered where it was received."""
        seconds = round(time.perf_counter() - started, 6)
        self._put(
            {
                "event": "request",
                "level": "info",
                "timestamp": time.time(),
                "client": client,
                "method": request.method,
                **_subject(request.target, rendered.digest),
                "outcome": rendered.outcome,
                "status": rendered.status,
                "bytes": len(rendered.body),
                "first_byte": seconds,
                "seconds": seconds,
                "request": identifier,
            }
        )

    def _log(
        self, request: web.BaseRequest, response: web.StreamResponse | None, started: float, answer: dict[str, object]
    ) -> None:
        target: Target | None = request.get(TARGET)
        digest = response.digest if isinstance(response, ReadyResponse) else None
        subject = {"path": _foreign(request.raw_path)} if target is None else _subject(target, digest)
        user = _foreign(user_of(request.headers.get("Authorization", ""))) if request.get(USER) else None
        fields = {"client": request.remote, "user": user, "method": request.method[:20], **subject, **answer}
        seconds = round(time.perf_counter() - started, 6)
        self._write({**fields, "seconds": seconds, "request": request_id.get()})

    def _write(self, fields: dict[str, object]) -> None:
        fields = {name: value for name, value in fields.items() if value not in (None, "")}
        self._put({"event": "request", "level": "info", "timestamp": time.time(), **fields})


def _answer(request: web.BaseRequest, response: web.StreamResponse, started: float) -> dict[str, object]:
    now = time.perf_counter()
    if not isinstance(response, ReadyResponse):
        return {"outcome": "", "status": response.status, "bytes": 0}
    first_byte = response.begun if response.begun is not None else now
    return {
        "outcome": response.word,
        "status": response.status,
        "bytes": response.body_bytes(request.method),
        "first_byte": round(first_byte - started, 6),
        "cause": _foreign(response.cause),
    }


def _subject(target: Target, digest: Digest | None) -> dict[str, object]:
    """What a request names, and the digest that its tag names."""
    kind, repository, reference = target
    if repository is None:
        return {"kind": kind}
    named: dict[str, object] = {"kind": kind, "registry": repository.registry, "repository": repository.path}
    if reference is not None:
        named["reference"] = str(reference)
    if digest is not None and digest != reference:
        named["digest"] = str(digest)
    return named


def _foreign(text: str) -> str:
    """Text from outside, without secrets and without `$`, at which programs that read logs may expand something."""
    return without_secret(text)[:_MAX_TEXT].replace("$", "%24")
