"""Listening sockets that the service manager has opened and passed (sd_listen_fds(3)): they outlive the mirror."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

from mirror.errors import ConfigurationError

_FIRST_DESCRIPTOR = 3
_MAX_DESCRIPTORS = 64
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


class PassedSockets:
    """The passed sockets that are not in use yet."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self._sockets = sockets

    def take(self, address: tuple[object, ...]) -> socket.socket | None:
        """Return the socket that listens on a host and port, once; None if there is none."""
        for sock in self._sockets:
            if sock.getsockname()[:2] == address[:2]:
                self._sockets.remove(sock)
                return sock
        return None

    def refuse_others(self) -> None:
        """Raise a ConfigurationError if a socket was not taken: connections to it would never be accepted."""
        names = [f"{host}:{port}" for host, port in (sock.getsockname()[:2] for sock in self._sockets)]
        for sock in self._sockets:
            sock.close()
        if names:
            problem = f"listen: systemd passes a socket at {', '.join(names)}; ListenStream= has to be `listen` or `admin.listen`"
            raise ConfigurationError([problem])


def inherited(environment: MutableMapping[str, str] = os.environ, first: int = _FIRST_DESCRIPTOR) -> PassedSockets:
    """Return the sockets that this process was started with, and remove their variables from the environment.

    Args:
        first: the first passed descriptor.

    Raises:
        ConfigurationError: a passed descriptor is not a listening TCP socket.
    """
    pid, count, _ = (environment.pop(name, "") for name in _VARIABLES)
    if pid != str(os.getpid()):
        return PassedSockets([])
    if not (count.isascii() and count.isdigit() and int(count) <= _MAX_DESCRIPTORS):
        raise ConfigurationError([f"LISTEN_FDS: {count!r} is no number from 0 to {_MAX_DESCRIPTORS}"])
    return PassedSockets([_checked(descriptor) for descriptor in range(first, first + int(count))])


def _checked(descriptor: int) -> socket.socket:
    try:
        sock = socket.socket(fileno=descriptor)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ConfigurationError([f"LISTEN_FDS: descriptor {descriptor} is no socket: {error.strerror or error}"]) from error
    if not listens or sock.family not in (socket.AF_INET, socket.AF_INET6) or sock.type != socket.SOCK_STREAM:
        sock.close()
        raise ConfigurationError([f"LISTEN_FDS: descriptor {descriptor} is no listening TCP socket"])
    sock.set_inheritable(False)
    return sock
