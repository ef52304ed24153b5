"""Responses that are written where their requests are received, without a task and without parsing a request anew.

Container clients repeat requests byte for byte. The bytes of a request's head say all that its parsed form says, so what was
understood once is found again by them. Everything that may have changed since is looked at again for each request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from aiohttp import HttpVersion11, hdrs, web

_MAX_ENTRIES: Final = 4096
# Longer heads are parsed each time: their length is the client's to choose.
_MAX_HEAD_BYTES: Final = 1024
# Secrets are not kept in memory, and a request identifier makes every head another one.
_NEVER_KEPT: Final = frozenset({hdrs.AUTHORIZATION, hdrs.PROXY_AUTHORIZATION, hdrs.COOKIE, "X-Request-Id"})


@dataclass(frozen=True, slots=True)
class InlineRequest:
    """A request that was answered before.

    Attributes:
        host: its Host header.
        respond: returns the whole response to the client at an address, or None if something has to be waited for.
    """

    host: str | None
    respond: Callable[[str], bytes | None]


class InlineRequests:
    """Bounded memory of requests by the bytes of their heads."""

    def __init__(self) -> None:
        self._requests: dict[bytes, InlineRequest] = {}

    def find(self, head: bytes) -> InlineRequest | None:
        """Return the request that has this head if it was answered before."""
        return self._requests.get(head)

    def add(self, request: web.BaseRequest, respond: Callable[[str], bytes | None]) -> None:
        """Answer requests like this one by `respond` from now on, if it is fit for that.

        A request is fit if it came in one piece, keeps its connection open, and carries nothing that is its own.
        """
        head: bytes | None = request.protocol.head  # type: ignore[attr-defined]
        if head is None or len(head) > _MAX_HEAD_BYTES or not request.keep_alive or request.version != HttpVersion11:
            return
        if any(name in request.headers for name in _NEVER_KEPT):
            return
        if len(self._requests) >= _MAX_ENTRIES:
            self._requests.clear()
        self._requests[head] = InlineRequest(request.headers.get(hdrs.HOST), respond)
