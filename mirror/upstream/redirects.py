"""Where a redirect may lead."""

from __future__ import annotations

from yarl import URL

from mirror.core.networks import is_internal, parse_address
from mirror.errors import UpstreamProtocolError

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
