"""Requests that are answered in the callback that receives them, without a task and without parsing.

Container clients repeat requests byte for byte. Equal bytes parse to equal requests, so the parsed form is found by the bytes of
the head. Everything that may have changed since is checked again for each request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import HttpVersion11, hdrs, web

from mirror.listener.responses import TARGET, Rendered, Target

_MAX_ENTRIES: Final = 4096
# Longer heads are parsed each time: their length is the client's to choose.
_MAX_HEAD_BYTES: Final = 1024
# Credentials are not kept in memory, and identifiers of requests and traces make heads unique.
_EXCLUDED: Final = frozenset({hdrs.AUTHORIZATION, hdrs.PROXY_AUTHORIZATION, hdrs.COOKIE, "X-Request-Id", "traceparent"})


@dataclass(frozen=True, slots=True)
class InlineRequest:
    """A request that was answered before.

    Attributes:
        host: its Host header.
        method: GET or HEAD.
        target: what it asks for; see `mirror.listener.access_log`.
        respond: returns the response to the client at an address, or None if it has to wait for anything.
    """

    host: str | None
    method: str
    target: Target
    respond: Callable[[str], Rendered | None]


class InlineRequests:
    """A bounded cache of requests by the bytes of their heads."""

    def __init__(self) -> None:
        self._requests: dict[bytes, InlineRequest] = {}

    def find(self, head: bytes) -> InlineRequest | None:
        """The cached request that has these bytes, or None."""
        return self._requests.get(head)

    def add(self, request: web.BaseRequest, respond: Callable[[str], Rendered | None]) -> None:
        """Have equal requests answered by `respond`.

        Its handler has set TARGET. Ignores a request that arrived in several pieces, closes its connection, or has an excluded
        header.
        """
        head: bytes | None = request.protocol.head  # type: ignore[attr-defined]
        if head is None or len(head) > _MAX_HEAD_BYTES or not request.keep_alive or request.version != HttpVersion11:
            return
        if any(name in request.headers for name in _EXCLUDED):
            return
        if len(self._requests) >= _MAX_ENTRIES:
            self._requests.clear()
        self._requests[head] = InlineRequest(request.headers.get(hdrs.HOST), request.method, request[TARGET], respond)
