"""Where a registry redirects requests for blobs to, to be used again while that is valid."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import aiohttp
from yarl import URL

from mirror.core.bounded_cache import BoundedCache
from mirror.core.signed_urls import reusable_for
from mirror.upstream.requests import UpstreamRequest

_MAX_TARGETS = 4096


class RedirectTargets:
    """The targets by repository and digest: what a registry grants to one repository it need not grant to another.

    A signed URL is good for GET only.
    """

    def __init__(self) -> None:
        self._targets: BoundedCache[tuple[str, str], URL] = BoundedCache(_MAX_TARGETS)

    def get(self, request: UpstreamRequest, now: float) -> URL | None:
        """The target for a request, if one is known and valid at `now`."""
        return self._targets.get(_key(request), now) if _is_content(request) else None

    def keep(self, request: UpstreamRequest, redirect: aiohttp.ClientResponse, target: URL, now: float) -> None:
        """Note where a request was redirected to."""
        lifetime = reusable_for(target.query, redirect.headers.get("Cache-Control", ""), _date(redirect))
        if _is_content(request) and lifetime:
            self._targets.put(_key(request), target, expires=now + lifetime)

    def forget(self, request: UpstreamRequest) -> None:
        """Drop the target for a request: it has failed."""
        self._targets.pop(_key(request))

    def clear(self) -> None:
        """Drop all targets."""
        self._targets.clear()


def _is_content(request: UpstreamRequest) -> bool:
    return request.kind == "blob" and request.method == "GET"


def _key(request: UpstreamRequest) -> tuple[str, str]:
    return request.repository, request.rest


def _date(response: aiohttp.ClientResponse) -> datetime:
    """The time by the clock of the host that has answered (RFC 9110 section 6.6.1)."""
    try:
        date = parsedate_to_datetime(response.headers.get("Date", ""))
    except (ValueError, OverflowError):
        return datetime.now(UTC)
    return date if date.tzinfo else date.replace(tzinfo=UTC)
