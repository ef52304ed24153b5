"""The address by which other nodes reach this one."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit

from mirror.config.cluster import ClusterConfig

_REDIS_PORT = 6379
# Of a block for documentation (RFC 5737): only the route to it is looked up.
_ANYWHERE = ("192.0.2.1", _REDIS_PORT)
_WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104 - compared, not listened on


def advertised(config: ClusterConfig) -> str:
    """Return the URL of this node: as configured, or from `POD_IP`, the listening address, or the route to Redis. May block."""
    if config.advertise is not None:
        return config.advertise
    host = os.environ.get("POD_IP") or (config.listen.host if config.listen.host not in _WILDCARDS else _host(config))
    scheme = "http" if config.tls.certificate is None else "https"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{config.listen.port}"


def _host(config: ClusterConfig) -> str:
    """The address of this host that packets to Redis come from; to anywhere else, if Redis is on this host or has no address."""
    parts = urlsplit(config.redis.url or "")
    for target in ((parts.hostname, parts.port or _REDIS_PORT), _ANYWHERE):
        host = _source(target[0], target[1])
        if host is not None and not host.startswith("127.") and host != "::1":
            return host
    return "127.0.0.1"


def _source(host: str | None, port: int) -> str | None:
    """The local address of a connection to a host. Nothing is sent: the sockets are of UDP."""
    if host is None:
        return None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)
            return str(probe.getsockname()[0])
    except OSError:
        return None
