"""Redirects: where they may lead, and the targets that are used again while they are valid."""

from __future__ import annotations

import socket
from datetime import UTC, datetime

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from mirror.core.bounded_cache import BoundedCache
from mirror.core.http_date import parse_http_date
from mirror.core.networks import is_internal, parse_address
from mirror.core.signed_urls import reusable_for
from mirror.errors import UpstreamProtocolError
from mirror.upstream.attempt import UpstreamRequest

MAX_HOPS = 5
STATUSES = frozenset({301, 302, 303, 307, 308})


def target(current: URL, location: str | None, upstream: URL, *, public: bool) -> URL:
    """The URL that a redirect leads to, its escapes untouched: they are part of a signature.

    Args:
        public: whether upstream is on the Internet. Names that resolve to internal addresses are refused by `PublicResolver`.

    Raises:
        UpstreamProtocolError: no location, a scheme less safe than upstream's, credentials in the URL, or an internal address
            although upstream is public.
    """
    if not location:
        raise UpstreamProtocolError(f"{current.host} redirects to nowhere")
    try:
        found = URL(location, encoded=True)
        url = found if found.scheme else current.join(found)
        host, _ = url.host, url.port
    except ValueError as error:
        raise UpstreamProtocolError(f"{current.host} redirects to something that is no URL") from error
    if url.scheme not in ("https", upstream.scheme) or url.scheme not in ("http", "https") or not host:
        raise UpstreamProtocolError(f"{current.host} redirects from {upstream.scheme} to {url.scheme}://{url.host}")
    if url.user or url.password:
        raise UpstreamProtocolError(f"{current.host} redirects to a URL with credentials")
    if public and is_inside(host):
        raise UpstreamProtocolError(f"{current.host} redirects to the internal address {host}")
    return url


def is_inside(host: str) -> bool:
    """Whether a host name is by itself an internal address: of this host, a private network, or a link (metadata services)."""
    host = host.lower().removesuffix(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    address = parse_address(host)
    if address is None:
        # Resolvers accept 127.1, 0x7f000001 and 2130706433 as addresses; no public name ends in a number.
        return host.rpartition(".")[2][:1].isdigit()
    return is_internal(address)


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
    return parse_http_date(response.headers.get("Date", "")) or datetime.now(UTC)


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses only.

    No name that a public upstream redirects to leads to this host, its network, or the cloud's metadata service.
    """

    def __init__(self, inner: AbstractResolver) -> None:
        self._inner = inner

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[ResolveResult]:
        """Addresses of a host; raises UpstreamProtocolError if all it has are internal."""
        found = await self._inner.resolve(host, port, family)
        public = [result for result in found if not is_inside(result["host"])]
        if found and not public:
            raise UpstreamProtocolError(f"{host} has an internal address, to which a public upstream does not lead")
        return public

    async def close(self) -> None:
        """Close the inner resolver."""
        await self._inner.close()
