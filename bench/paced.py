"""Small requests at a steady pace over kept-alive connections: reads a `Pace` as JSON, one line, from stdin.

Asks until stdin ends, then prints what came of each request as JSON. A request is sent when its time has come, whether
earlier ones have been answered or not, so that a server that stalls is seen by all who would have come meanwhile.
"""

import json
import random
import selectors
import socket
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass, field

CONNECTIONS = 64
RECEIVE = 64 << 10


@dataclass
class Pace:
    """What to ask, in random order, and how many times a second."""

    port: int
    paths: list[str]
    rate: float
    accept: str = "*/*"


@dataclass
class Asked:
    """When each request was sent (seconds since the epoch), how long its whole answer took in seconds, what went wrong.

    late: the longest that the client itself was behind its schedule, in seconds.
    """

    sent: list[float] = field(default_factory=list)
    took: list[float] = field(default_factory=list)
    late: float = 0.0
    error: str = ""


class Connection:
    """One connection with at most one request under way."""

    def __init__(self, pace: Pace) -> None:
        self.socket = socket.create_connection(("127.0.0.1", pace.port))
        self.socket.setblocking(False)
        self.sent = 0.0
        self._accept = pace.accept
        self._answer = b""

    def ask(self, path: str) -> None:
        """Send a request; it fits into any socket buffer."""
        self._answer = b""
        self.sent = time.time()
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: mirror\r\nAccept: {self._accept}\r\n\r\n".encode())

    def receive(self) -> bool:
        """Take what has arrived; True if the answer is whole. Raises OSError if it is not a good one."""
        data = self.socket.recv(RECEIVE)
        self._answer += data
        head, end, body = self._answer.partition(b"\r\n\r\n")
        if not data or (end and b" 200 " not in head[:20]):
            raise OSError(f"answered {self._answer[:300]!r}")
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None)
        return bool(end) and length == len(body)


def run(pace: Pace) -> Asked:
    """Ask until stdin ends."""
    asked = Asked()
    selector = selectors.EpollSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    # In turn, so that none rests long enough to be closed.
    idle = deque(Connection(pace) for _ in range(CONNECTIONS))
    for connection in idle:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    due = time.monotonic()
    try:
        while True:
            for key, _ in selector.select(max(0.0, due - time.monotonic())):
                if key.data is None:
                    return asked
                if key.data.receive():
                    asked.sent.append(key.data.sent)
                    asked.took.append(time.time() - key.data.sent)
                    idle.append(key.data)
            while due <= time.monotonic() and idle:
                asked.late = max(asked.late, time.monotonic() - due)
                due += 1 / pace.rate
                idle.popleft().ask(random.choice(pace.paths))
    except OSError as error:
        asked.error = str(error)
        return asked


if __name__ == "__main__":
    json.dump(asdict(run(Pace(**json.loads(sys.stdin.readline())))), sys.stdout)
