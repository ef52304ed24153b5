"""Many downloads at once from one process: reads a `Load` as JSON from stdin, prints what came of it as JSON.

Bodies are discarded inside the kernel (`MSG_TRUNC`, tcp(7)), so that a client costs far less than any server,
and the same for all of them.
"""

import json
import selectors
import socket
import sys
import time
from dataclasses import asdict, dataclass, field

DISCARD = 4 << 20
HEAD = 16 << 10
CONNECT_SECONDS = 10.0
QUARTERS = 4


@dataclass
class Load:
    """One connection per path; with `seconds` each repeats its download until then, else downloads once.

    Attributes:
        ports: one for each path, in place of `port`.
    """

    port: int
    paths: list[str]
    seconds: float = 0.0
    limit: float = 300.0
    host: str = "127.0.0.1"
    ports: list[int] = field(default_factory=list)


@dataclass
class Outcome:
    """Seconds count from the first request; the lists have one entry per download made once.

    Attributes:
        quarters: when each quarter of the body had arrived.
        pauses: the longest time between two arrivals of bytes.
    """

    bytes: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    first_byte: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    quarters: list[list[float]] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    error: str = ""


class DownloadError(Exception):
    """A server answered something else than a whole body."""


class Download:
    """One connection and the answer that is arriving on it."""

    def __init__(self, host: str, port: int, path: str) -> None:
        self.socket = socket.create_connection((host, port), CONNECT_SECONDS)
        self.socket.setblocking(False)
        self.first_byte = 0.0
        self.pause = 0.0
        self.quarters: list[float] = []
        self._request = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nAccept: */*\r\n\r\n".encode()
        self._head = b""
        self._left = self._length = 0
        self._last = 0.0

    def ask(self) -> None:
        """Send the request; it fits into any socket buffer."""
        self._head = b""
        self.first_byte = 0.0
        self.quarters = []
        self.socket.sendall(self._request)

    def receive(self, void: bytearray) -> int:
        """Take what has arrived; answers the body bytes among it. Raises DownloadError."""
        if not self._head.endswith(b"\r\n\r\n"):
            return self._receive_head()
        try:
            count = self.socket.recv_into(void, min(self._left, len(void)), socket.MSG_TRUNC)
        except BlockingIOError:
            return 0
        if not count:
            raise DownloadError(f"the body ended {self._left} bytes short")
        self._left -= count
        now = time.monotonic()
        self.pause = max(self.pause, now - (self._last or now))
        self._last = now
        self.first_byte = self.first_byte or now
        while len(self.quarters) < QUARTERS and (self._length - self._left) * QUARTERS >= self._length * (len(self.quarters) + 1):
            self.quarters.append(now)
        return count

    @property
    def complete(self) -> bool:
        """The whole body has arrived."""
        return self._left == 0 and self._head.endswith(b"\r\n\r\n")

    def _receive_head(self) -> int:
        try:
            more = self.socket.recv(HEAD)
        except BlockingIOError:
            return 0
        if not more:
            raise DownloadError(f"the connection was closed before an answer ({self._head[:80]!r})")
        head, end, body = (self._head + more).partition(b"\r\n\r\n")
        self._head = head + end
        if not end:
            return 0
        lines = head.decode("latin-1").lower().split("\r\n")
        length = next((line[15:].strip() for line in lines if line.startswith("content-length:")), "")
        if lines[0].split()[1] != "200" or not length:
            raise DownloadError(f"answered {lines[0]!r} with Content-Length {length or 'missing'}")
        self._length = int(length)
        self._left = self._length - len(body)
        if body:
            self.first_byte = self._last = time.monotonic()
        return len(body)


def run(load: Load) -> Outcome:
    """Connect everybody, then ask on all connections at once and receive until all is done."""
    ports = load.ports or [load.port] * len(load.paths)
    downloads = [Download(load.host, port, path) for port, path in zip(ports, load.paths, strict=True)]
    outcome = Outcome()
    selector = selectors.EpollSelector()
    for download in downloads:
        selector.register(download.socket, selectors.EVENT_READ, download)
    began = time.monotonic()
    cpu_before = time.process_time()
    try:
        for download in downloads:
            download.ask()
        _receive(load, selector, outcome, began)
    except (DownloadError, OSError) as error:
        outcome.error = str(error)
    outcome.seconds = time.monotonic() - began
    outcome.cpu_seconds = time.process_time() - cpu_before
    for download in downloads:
        download.socket.close()
    return outcome


def _receive(load: Load, selector: selectors.BaseSelector, outcome: Outcome, began: float) -> None:
    void = bytearray(DISCARD)
    end = began + (load.seconds or load.limit)
    under_way = len(load.paths)
    while under_way:
        now = time.monotonic()
        if now >= end:
            if not load.seconds:
                raise DownloadError(f"{under_way} of {len(load.paths)} downloads were not done after {load.limit:.0f} s")
            return
        for key, _ in selector.select(end - now):
            download: Download = key.data
            outcome.bytes += download.receive(void)
            if not download.complete:
                continue
            if load.seconds:
                download.ask()
                continue
            outcome.first_byte.append(download.first_byte - began)
            outcome.done.append(time.monotonic() - began)
            outcome.pauses.append(download.pause)
            outcome.quarters.append([quarter - began for quarter in download.quarters])
            selector.unregister(download.socket)
            under_way -= 1


if __name__ == "__main__":
    json.dump(asdict(run(Load(**json.load(sys.stdin)))), sys.stdout)
