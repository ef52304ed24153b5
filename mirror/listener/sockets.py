"""Sockets: those that listen, and options of accepted ones."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

from mirror.config.types import Address
from mirror.core.networks import parse_address
from mirror.errors import ConfigurationError
from mirror.listener.passed_sockets import PassedSockets

# Connections that the kernel accepts while the process is busy.
BACKLOG = 4096
# The kernel closes a connection whose client acknowledges nothing for this time. Accepted sockets inherit it.
_CLIENT_STALL_MS = 60_000


def is_loopback(sock: socket.socket) -> bool:
    """Whether only this host can reach a listening socket."""
    address = parse_address(str(sock.getsockname()[0]))
    return address is not None and address.is_loopback


def listen(key: str, address: Address, passed: PassedSockets | None = None) -> socket.socket:
    """Create a listening socket, or take the one for this address from the passed ones.

    Raises:
        ConfigurationError: the address cannot be used; the message names `key`.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        found = socket.getaddrinfo(address.host, address.port, family, socket.SOCK_STREAM)[0][4]
        sock = (passed.take(found) if passed is not None else None) or _bound(family, found)
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _CLIENT_STALL_MS)
        sock.setblocking(False)
    except OSError as error:
        raise ConfigurationError([f"{key}: cannot listen on {address}: {error.strerror or error}"]) from error
    return sock


@contextlib.contextmanager
def corked(transport: asyncio.BaseTransport) -> Iterator[None]:
    """Have the kernel send nothing but full segments during the context (TCP_CORK of tcp(7)), and the rest at its end.

    Without it the kernel also sends what is left over of each piece that it takes, in a segment of its own.
    """
    sock = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    try:
        yield
    finally:
        # It may be closed by now.
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)


def _bound(family: int, address: tuple[object, ...]) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
