"""Ports for processes that have to be told which one is theirs."""

from __future__ import annotations

import contextlib
import functools
import itertools
import socket

# Below what Linux gives to outgoing connections (net.ipv4.ip_local_port_range), so that none of those is in the way.
_FIRST, _LAST, _BLOCK = 20_000, 32_600, 200


class PortBlock:
    """Two hundred ports that are this process's own among all that run these tests at the same time.

    Who is bound to the UDP port of the first one's number owns the block.
    """

    def __init__(self) -> None:
        for first in range(_FIRST, _LAST, _BLOCK):
            self._claim = socket.socket(type=socket.SOCK_DGRAM)
            with contextlib.suppress(OSError):
                self._claim.bind(("127.0.0.1", first))
                break
            self._claim.close()
        else:
            raise OSError(f"all ports from {_FIRST} to {_LAST} are taken")
        # Round and round: a port comes back late, when nothing of its last use is left.
        self._ports = itertools.cycle(range(first, first + _BLOCK))

    def next(self) -> int:
        """A TCP port that can be listened on at 127.0.0.1."""
        for port in itertools.islice(self._ports, _BLOCK):
            with contextlib.suppress(OSError), socket.socket() as probe:
                # As servers do: the ends of earlier connections keep a port for a minute, in which tests may need all of them.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
                return port
        raise OSError("all ports of the block are in use")

    def close(self) -> None:
        """Leave the block to others."""
        self._claim.close()


@functools.cache
def block() -> PortBlock:
    """The ports of this process."""
    return PortBlock()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on, and that no other test is told meanwhile."""
    return block().next()


def close_ports() -> None:
    """Leave this process's ports to others."""
    if block.cache_info().currsize:
        block().close()
        block.cache_clear()
