"""A registry to pull from, slowed down on purpose: `python -m bench.origin ROOT [--rate N] ...`.

Serves the files under ROOT/v2/ by the OCI distribution API (Pulling manifests, Pulling blobs), without
credentials. Prints its port, then answers until it is ended. `GET /control` tells what was sent so far.
"""

import argparse
import asyncio
import hashlib
import json
import re
import socket
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench.content import MANIFEST_TYPE
from bench.process import die_with_parent

SLICES_PER_SECOND = 8
SMALLEST_SLICE = 16 << 10
LARGEST_SLICE = 256 << 10
LARGEST_HEAD = 64 << 10
RESOURCE = re.compile(r"/v2/[a-z0-9/._-]+/(blobs|manifests)/[A-Za-z0-9:._-]+")
RANGE = re.compile(r"bytes=(\d*)-(\d*)")


class Bucket:
    """Hands out bytes at `rate` per second (0: no limit), first come first served, no bursts."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._next = 0.0

    async def take(self, count: int) -> None:
        """Wait until `count` bytes may be sent."""
        if not self.rate:
            return
        now = time.monotonic()
        # A turn taken late may be made up for at most one slice: asyncio's timers are coarser than a slice.
        start = max(self._next, now - LARGEST_SLICE / self.rate)
        self._next = start + count / self.rate
        if self._next > now:
            await asyncio.sleep(self._next - now)


@dataclass
class Counters:
    """Body bytes, requests and GETs of manifests since the start; transfers are bodies being sent, now and at most at once."""

    bytes: int = 0
    requests: int = 0
    manifests: int = 0
    transfers: int = 0
    most_transfers: int = 0


@dataclass
class Answer:
    """Status, headers and the part of a file or the bytes that follow them."""

    status: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    file: Path | None = None
    offset: int = 0
    count: int = 0

    def head(self) -> bytes:
        """Status line and headers as sent (RFC 9112 section 2.1)."""
        length = self.count if self.file else len(self.body)
        lines = [f"HTTP/1.1 {self.status}", f"Content-Length: {length}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return "\r\n".join([*lines, "Docker-Distribution-Api-Version: registry/2.0", "", ""]).encode()


class Origin:
    """One listening socket, one shared bucket, and a bucket for each connection."""

    def __init__(self, root: Path, rate: float, connection_rate: float, latency: float) -> None:
        self._root = root
        self._shared = Bucket(rate)
        self._connection_rate = connection_rate
        self._latency = latency
        self._counters = Counters()
        self._digests: dict[Path, str] = {}
        slowest = min((limit for limit in (rate, connection_rate) if limit), default=0)
        self._slice = int(min(max(slowest / SLICES_PER_SECOND, SMALLEST_SLICE), LARGEST_SLICE)) if slowest else 0

    async def serve(self, listener: socket.socket) -> None:
        """Accept connections for ever."""
        loop = asyncio.get_running_loop()
        tasks: set[asyncio.Task[None]] = set()
        while True:
            connection, _ = await loop.sock_accept(listener)
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            task = loop.create_task(self._connection(connection))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _connection(self, connection: socket.socket) -> None:
        bucket = Bucket(self._connection_rate)
        received = b""
        with connection:
            try:
                while request := await _request(connection, received):
                    head, received = request
                    await self._answer(connection, head.decode("latin-1"), bucket)
            except (ConnectionError, OSError):
                return

    async def _answer(self, connection: socket.socket, head: str, bucket: Bucket) -> None:
        loop = asyncio.get_running_loop()
        method, target, *_ = head.split(" ", 2)
        path = target.partition("?")[0]
        if path == "/control":
            answer = Answer("200 OK", body=json.dumps(asdict(self._counters)).encode())
        else:
            self._counters.requests += 1
            self._counters.manifests += method == "GET" and "/manifests/" in path
            if self._latency:
                await asyncio.sleep(self._latency)
            answer = self._resource(method, path, head)
        await loop.sock_sendall(connection, answer.head() + (b"" if method == "HEAD" else answer.body))
        if answer.file and method != "HEAD":
            await self._send(connection, answer, bucket)

    def _resource(self, method: str, path: str, head: str) -> Answer:
        if method not in ("GET", "HEAD"):
            return Answer("405 Method Not Allowed")
        if path == "/v2/":
            return Answer("200 OK", body=b"{}")
        match = RESOURCE.fullmatch(path)
        file = self._root / path[1:]
        if not match or not file.is_file():
            return Answer("404 Not Found", body=b'{"errors":[{"code":"NAME_UNKNOWN"}]}')
        size = file.stat().st_size
        media_type = MANIFEST_TYPE if match[1] == "manifests" else "application/octet-stream"
        digest = self._digest(file)
        headers = {"Content-Type": media_type, "Docker-Content-Digest": digest, "ETag": f'"{digest}"'}
        headers["Accept-Ranges"] = "bytes"
        answer = Answer("200 OK", headers, file=file, count=size)
        return _ranged(answer, head) if method == "GET" else answer

    def _digest(self, file: Path) -> str:
        if file.name.startswith("sha256:"):
            return file.name
        if file not in self._digests:
            self._digests[file] = f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
        return self._digests[file]

    async def _send(self, connection: socket.socket, answer: Answer, bucket: Bucket) -> None:
        assert answer.file
        loop = asyncio.get_running_loop()
        counters = self._counters
        counters.transfers += 1
        counters.most_transfers = max(counters.most_transfers, counters.transfers)
        offset, end = answer.offset, answer.offset + answer.count
        try:
            with open(answer.file, "rb") as file:
                while offset < end:
                    count = min(self._slice or LARGEST_SLICE, end - offset)
                    await bucket.take(count)
                    await self._shared.take(count)
                    sent = await loop.sock_sendfile(connection, file, offset, count)
                    offset += sent
                    counters.bytes += sent
        finally:
            counters.transfers -= 1


async def _request(connection: socket.socket, received: bytes) -> tuple[bytes, bytes] | None:
    """The head of the next request and what came after it; None when the peer has closed or talks no HTTP."""
    loop = asyncio.get_running_loop()
    while b"\r\n\r\n" not in received:
        more = await loop.sock_recv(connection, LARGEST_HEAD)
        if not more or len(received) > LARGEST_HEAD:
            return None
        received += more
    head, _, rest = received.partition(b"\r\n\r\n")
    return head, rest


def _ranged(answer: Answer, head: str) -> Answer:
    """Narrow a whole answer to the single range the request names, if it does (RFC 9110 section 14.2)."""
    wanted = next((line[6:].strip() for line in head.splitlines() if line.lower().startswith("range:")), "")
    match = RANGE.fullmatch(wanted)
    if not match or not any(match.groups()):
        return answer
    size = answer.count
    first = int(match[1]) if match[1] else max(size - int(match[2]), 0)
    last = min(int(match[2]), size - 1) if match[1] and match[2] else size - 1
    if first > last:
        return Answer("416 Range Not Satisfiable", {"Content-Range": f"bytes */{size}"})
    answer.status = "206 Partial Content"
    answer.headers["Content-Range"] = f"bytes {first}-{last}/{size}"
    answer.offset, answer.count = first, last - first + 1
    return answer


def main() -> None:
    """Bind a free port, print it, serve until the parent ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--rate", type=float, default=0, help="bytes per second, all connections together; 0: no limit")
    parser.add_argument("--connection-rate", type=float, default=0, help="bytes per second of each connection")
    parser.add_argument("--latency", type=float, default=0, help="seconds before each answer")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at")
    parser.add_argument("--congestion", default="", help="congestion control instead of the machine's own, see tcp(7)")
    options = parser.parse_args()
    die_with_parent()
    with socket.create_server((options.host, 0), backlog=4096) as listener:
        if options.congestion:
            # Accepted connections inherit it.
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, options.congestion.encode())
        listener.setblocking(False)
        print(listener.getsockname()[1], flush=True)
        origin = Origin(options.root, options.rate, options.connection_rate, options.latency)
        asyncio.run(origin.serve(listener))


if __name__ == "__main__":
    main()
