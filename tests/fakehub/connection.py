"""One HTTP/1.1 connection of the fake, written by hand.

A web framework repairs what a handler does: it adds a length, completes a chunked body, joins headers to
the first piece. The faults need exactly these bytes at exactly this moment, and then a FIN or a reset.
"""

import array
import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from multidict import CIMultiDict, CIMultiDictProxy

from .pace import Bucket

HEAD_LIMIT = 256 * 1024


class HangUpError(Exception):
    """The connection ends now: with a FIN after what was written, or with a reset."""

    def __init__(self, reset: bool = False) -> None:
        super().__init__("reset" if reset else "closed")
        self.reset = reset


@dataclass(frozen=True)
class Request:
    """A request as it came: the target is kept undecoded."""

    method: str
    target: str
    version: str
    headers: CIMultiDictProxy[str]
    client: str

    @property
    def keep_alive(self) -> bool:
        return self.version == "HTTP/1.1" and self.headers.get("Connection", "").lower() != "close"


Serve = Callable[["Connection", Request], Awaitable[bool]]


class Connection(asyncio.Protocol):
    """Reads requests one after the other and hands each to `serve`.

    `serve` says whether the connection may be kept. When the client leaves, what it is doing is cancelled.
    """

    def __init__(self, serve: Serve, live: set["Connection"]) -> None:
        self._serve = serve
        self._live = live
        self._received = bytearray()
        self._more = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.bucket = Bucket()
        self.transport: asyncio.Transport
        self.task: asyncio.Task[None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._live.add(self)
        self.task = asyncio.get_running_loop().create_task(self._run())

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._more.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.task.cancel()
        self.task.add_done_callback(lambda _: self._live.discard(self))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    async def write(self, data: bytes) -> None:
        """Pass bytes on and wait until the client has taken enough of them."""
        self.transport.write(data)
        # While the kernel takes everything, only this lets the loop tell that the client has left.
        await asyncio.sleep(0)
        await self._writable.wait()

    async def _run(self) -> None:
        try:
            while (request := await self._request()) and await self._serve(self, request) and request.keep_alive:
                pass
            self.transport.close()
        except HangUpError as end:
            if end.reset:
                await self._reset()
            else:
                self.transport.close()
        except BaseException:
            self.transport.abort()
            raise

    async def _reset(self) -> None:
        """Close with a TCP reset, after everything written has arrived at the other side."""
        sock = self.transport.get_extra_info("socket")
        waiting = array.array("i", [1])
        while waiting[0] or self.transport.get_write_buffer_size():
            fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, waiting)
            await asyncio.sleep(0.001)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    async def _request(self) -> Request | None:
        head = await self._head()
        if head is None:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        if first.count(" ") != 2:
            raise HangUpError
        method, target, version = first.split(" ")
        headers: CIMultiDict[str] = CIMultiDict()
        for line in lines:
            name, _, value = line.partition(":")
            headers.add(name.strip(), value.strip())
        size = headers.get("Content-Length", "0")
        if not size.isdecimal():
            raise HangUpError
        await self._skip(int(size))
        client = self.transport.get_extra_info("peername")[0]
        return Request(method, target, version, CIMultiDictProxy(headers), client)

    async def _head(self) -> bytes | None:
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            if len(self._received) > HEAD_LIMIT:
                return None
            await self._wait()
        head = bytes(self._received[:end])
        del self._received[: end + 4]
        return head

    async def _skip(self, size: int) -> None:
        while len(self._received) < size:
            await self._wait()
        del self._received[:size]

    async def _wait(self) -> None:
        self._more.clear()
        await self._more.wait()
