"""Checks who sends a request: by the token, and by the web page that had the browser send it."""

from __future__ import annotations

import hmac

from aiohttp import web

# Sec-Fetch-Site of a page of this address, and of the browser's user (Fetch Metadata, section 2.3).
_OWN_SITES = frozenset({"same-origin", "none"})


def is_bearer(header: str, token: str) -> bool:
    """Whether an Authorization header has a token (RFC 6750 section 2.1)."""
    scheme, _, given = header.partition(" ")
    # The scheme is case-insensitive (RFC 9110 section 11.1).
    right = hmac.compare_digest(given.strip().encode("utf-8", "surrogateescape"), token.encode())
    return right and scheme.lower() == "bearer"


def is_own_origin(request: web.Request) -> bool:
    """Whether a request comes from a page of this address, or from no page."""
    if request.headers.get("Sec-Fetch-Site", "none").lower() not in _OWN_SITES:
        return False
    origin = request.headers.get("Origin")
    # The scheme is not compared: a reverse proxy may have changed it.
    return origin is None or origin.lower().partition("://")[2] == request.headers.get("Host", "").lower() != ""
