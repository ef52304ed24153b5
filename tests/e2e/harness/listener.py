"""A port on which nobody answers, and which knows how often somebody has connected to it."""

import contextlib
import socket


class Listener:
    """Connections are accepted by the kernel, so that none is missed, and closed when they are counted."""

    def __init__(self) -> None:
        """Listen on a free loopback port."""
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._socket.setblocking(False)
        self._connections = 0
        self.port = int(self._socket.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"

    def connections(self) -> int:
        """How many connections there have been up to now."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.accept()[0].close()
                self._connections += 1
        return self._connections

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()
