"""Tells requests of this address's own pages from those that another web page has the browser send."""

from __future__ import annotations

from aiohttp import web

# Sec-Fetch-Site of a page of this address, and of the browser's user (Fetch Metadata, section 2.3).
_OWN_SITES = frozenset({"same-origin", "none"})


def is_own_origin(request: web.Request) -> bool:
    """Whether a request comes from a page of this address, or from no page."""
    if request.headers.get("Sec-Fetch-Site", "none").lower() not in _OWN_SITES:
        return False
    origin = request.headers.get("Origin")
    # The scheme is not compared: a reverse proxy may have changed it.
    return origin is None or origin.lower().partition("://")[2] == request.headers.get("Host", "").lower() != ""
