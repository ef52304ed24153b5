"""Blobs as responses: whole, one range, or several ranges."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final, NamedTuple

from aiohttp import web

from mirror.cache.answers import BlobAnswer
from mirror.core.digest import Digest
from mirror.core.errors import RangeNotSatisfiable
from mirror.core.outcome import Outcome
from mirror.core.ranges import ByteRange, Full, content_range
from mirror.errors import MirrorError
from mirror.listener import oci_errors
from mirror.listener.responses import ReadyResponse, Rendered, head, problem_response, send_spans
from mirror.listener.server import while_connected
from mirror.registry.query import Query
from mirror.throttled_log import ThrottledLog

_TYPE: Final = "application/octet-stream"
# Longer bodies are sent from their files: copying them costs more than the machinery of that.
_MAX_COPIED_BYTES: Final = 64 << 10


class HeldPlan(NamedTuple):
    """A response from a held blob, but for its bytes.

    Attributes:
        start: of the part of the blob that is its body.
        stop: the end of that part; `start` if there is no body.
        is_whole: the body is the whole blob.
    """

    status: int
    head: bytes
    start: int = 0
    stop: int = 0
    is_whole: bool = False


def plan_held(digest: Digest, size: int, query: Query) -> HeldPlan | None:
    """The response to a query of a held blob if its body is short and one part, or if it has none; else None."""
    if query.is_satisfied_by(digest):
        return HeldPlan(304, not_modified(digest, Outcome.HIT))
    if query.is_head:
        return HeldPlan(200, described(digest, size, Outcome.HIT))
    if query.range is None and size > _MAX_COPIED_BYTES:
        return None
    try:
        parts = _Parts(size, query.ranges(digest, size))
    except RangeNotSatisfiable:
        return None
    part = parts.only
    if part is None or part.length > _MAX_COPIED_BYTES:
        return None
    return HeldPlan(parts.status, _head(digest, parts, Outcome.HIT), part.start, part.stop, parts.status == 200)


def not_modified(digest: Digest, outcome: Outcome) -> bytes:
    """The head of a 304."""
    return head(304, {"ETag": f'"{digest}"', "X-Cache": outcome})


def described(digest: Digest, size: int, outcome: Outcome) -> bytes:
    """The head of a response to HEAD."""
    return head(
        200,
        {
            "Content-Type": _TYPE,
            "Content-Length": str(size),
            "Docker-Content-Digest": str(digest),
            "ETag": f'"{digest}"',
            "Accept-Ranges": "bytes",
            "X-Cache": outcome,
        },
    )


def redirected(digest: Digest, url: str) -> bytes:
    """The head of a 307. Its URL is a secret for a while."""
    headers = {"Docker-Content-Digest": str(digest), "Cache-Control": "no-store", "X-Cache": Outcome.BYPASS}
    return head(307, {"Location": url, "Content-Length": "0", **headers})


async def send_blob(
    request: web.BaseRequest,
    answer: BlobAnswer,
    request_id: str,
    log: ThrottledLog,
    begun: Callable[[Outcome], None],
) -> ReadyResponse:
    """Stream the requested part of a blob. A body that cannot be completed ends short, with an orderly close.

    Args:
        log: for the reason why a body ends short.
        begun: called with the outcome when the headers are sent.

    Raises:
        MirrorError: the first byte is not available; nothing has been sent.
    """
    try:
        wanted = Query.of(request).ranges(answer.digest, answer.size)
    except RangeNotSatisfiable:
        return problem_response(oci_errors.range_refused(answer.size), request_id)
    parts = _Parts(answer.size, wanted)
    async with _while_wanted(request, answer):
        await answer.body.ready(parts.first.start, parts.first.stop)
    outcome = _outcome(answer)
    response = ReadyResponse(Rendered(parts.status, _head(answer.digest, parts, outcome), b"", outcome), request_id)
    await response.prepare(request)
    begun(outcome)
    await _send(request, response, answer, parts, log)
    response.outcome = _outcome(answer)
    return response


async def _send(request: web.BaseRequest, response: ReadyResponse, answer: BlobAnswer, parts: _Parts, log: ThrottledLog) -> None:
    """Send the body as far as it is available."""
    try:
        async with _while_wanted(request, answer):
            for preamble, part in parts.pieces():
                if preamble:
                    await request.writer.write(preamble)
                    response.sent += len(preamble)
                if part is not None:
                    await send_spans(request, response, answer.body, part.start, part.stop)
    except Exception as error:  # noqa: BLE001 - an error response would be taken for a part of the body
        # The status is sent: the client notices the failure only by the early end, and resumes.
        response.force_close()
        response.is_short, response.cause = True, str(error) or type(error).__name__
        _log_short(log, answer, response.sent, error)


def _while_wanted(request: web.BaseRequest, answer: BlobAnswer) -> AbstractAsyncContextManager[None]:
    """Cancels the body of the context when the client disconnects, if it waits for anything but the client."""
    return nullcontext() if answer.outcome is Outcome.HIT else while_connected(request)


def _head(digest: Digest, parts: _Parts, outcome: Outcome) -> bytes:
    return head(
        parts.status,
        {
            **parts.headers,
            "Content-Length": str(parts.length),
            "Docker-Content-Digest": str(digest),
            "ETag": f'"{digest}"',
            "Accept-Ranges": "bytes",
            "Cache-Control": "max-age=31536000",
            "X-Cache": outcome,
        },
    )


def _outcome(answer: BlobAnswer) -> Outcome:
    """The current outcome: a body may leave the store while it is sent."""
    return Outcome.BYPASS if answer.body.bypassed else answer.outcome


def _log_short(log: ThrottledLog, answer: BlobAnswer, sent: int, error: Exception) -> None:
    kind, said = type(error).__name__, {"digest": str(answer.digest), "sent": sent}
    if isinstance(error, MirrorError):
        # Its download has been logged, or another reader of the same.
        level = "debug" if error.is_logged else "warning"
        error.is_logged = True
        log.log(level, "body_ended_short", f"{kind} {level}", **said, cause=str(error))
    elif isinstance(error, RuntimeError | OSError):
        # What asyncio raises when a client disconnects.
        log.log("info", "body_ended_short", kind, **said, cause=str(error))
    else:
        log.log("error", "body_ended_short", kind, **said, exc_info=error)


class _Parts:
    """The parts of a body: the whole blob, one range, or several with their boundaries (RFC 9110 section 14.6)."""

    def __init__(self, size: int, wanted: Full | tuple[ByteRange, ...]) -> None:
        self.status, self._closing = 206, b""
        self._parts: list[tuple[bytes, ByteRange]] = []
        if isinstance(wanted, Full):
            self.status, self.headers = 200, {"Content-Type": _TYPE}
            self._parts = [(b"", ByteRange(0, size))] if size else []
        elif len(wanted) == 1:
            self.headers = {"Content-Type": _TYPE, "Content-Range": content_range(wanted[0], size)}
            self._parts = [(b"", wanted[0])]
        else:
            boundary = secrets.token_hex(16)
            self.headers = {"Content-Type": f"multipart/byteranges; boundary={boundary}"}
            self._parts = [(_preamble(boundary, part, size), part) for part in wanted]
            self._closing = f"\r\n--{boundary}--\r\n".encode()
        self.only = self._parts[0][1] if len(self._parts) == 1 else None
        self.first = self._parts[0][1] if self._parts else ByteRange(0, size)
        self.length = sum(len(text) + part.length for text, part in self._parts) + len(self._closing)

    def pieces(self) -> list[tuple[bytes, ByteRange | None]]:
        """Pairs of text to send and the part of the blob that follows it."""
        return [*self._parts, (self._closing, None)]


def _preamble(boundary: str, part: ByteRange, size: int) -> bytes:
    return (f"\r\n--{boundary}\r\nContent-Type: {_TYPE}\r\nContent-Range: {content_range(part, size)}\r\n\r\n").encode()
