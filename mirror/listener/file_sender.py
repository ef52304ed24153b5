"""Sends files over plain connections by sendfile(2).

asyncio's `sendfile` registers the socket again for every piece that a client takes, and pauses reading even if one piece is all.
A FileSender sends at once what fits into the socket's buffer, and registers the socket once for the rest. The kernel sends the
rest in full segments. Before each piece a FileSender looks whether that is in memory: sendfile(2) would wait for the disk, and so
would all other clients.
"""

from __future__ import annotations

import asyncio
import os

from mirror.listener.sockets import corked
from mirror.storage.page_cache import resident_until

# A socket's buffer is hardly larger (tcp_wmem of tcp(7)). While a client takes bytes as fast as they are sent, others wait.
_MAX_PIECE_BYTES = 4 << 20


class FileEnd(Exception):
    """The file ends before the bytes that were to be sent."""


class FileSender:
    """Sends the bytes of one file from a position on. Nothing else may write to the transport meanwhile.

    Attributes:
        position: of the next byte.
    """

    def __init__(self, transport: asyncio.Transport, descriptor: int, position: int) -> None:
        self.position = position
        self._transport = transport
        self._descriptor = descriptor
        self._socket: int = transport.get_extra_info("socket").fileno()
        self._stop = self._known = position

    async def send_until(self, stop: int, known: int = 0) -> None:
        """Send the bytes up to `stop`, or up to the first ones that are not in memory. The transport's buffer has to be empty.

        Args:
            known: the bytes up to there have just been read into memory, so that at least the socket is tried.

        Raises:
            ConnectionError: the connection has ended.
            FileEnd: the file has become too short.
        """
        self._stop, self._known = stop, known
        if self._transport.is_closing():
            raise ConnectionResetError("the client has gone")
        if self._send():
            with corked(self._transport):
                await self._send_rest()

    async def _send_rest(self) -> None:
        loop, transport = asyncio.get_running_loop(), self._transport
        # Reading a client's end of stream would close the transport while the body is sent.
        reading = transport.is_reading()
        transport.pause_reading()
        # The event loop refuses to watch the descriptor of a transport.
        self._socket, own = os.dup(self._socket), self._socket
        done: asyncio.Future[None] = loop.create_future()
        loop.add_writer(self._socket, self._on_writable, done)
        try:
            await done
        finally:
            loop.remove_writer(self._socket)
            os.close(self._socket)
            self._socket = own
            if reading and not transport.is_closing():
                transport.resume_reading()

    def _on_writable(self, done: asyncio.Future[None]) -> None:
        if done.done():
            return
        try:
            if self._transport.is_closing():
                raise ConnectionResetError("the client has gone")
            if not self._send():
                done.set_result(None)
        except (OSError, FileEnd) as error:
            done.set_exception(error)

    def _send(self) -> bool:
        """Send what the socket takes of the next piece; returns whether to continue when it takes more."""
        start, end = self.position, min(self.position + _MAX_PIECE_BYTES, self._stop)
        known, self._known = self._known, 0
        end = min(known, end) if known > start else resident_until(self._descriptor, start, end)
        if end == start:
            return False
        try:
            count = os.sendfile(self._socket, self._descriptor, start, end - start)
        except (BlockingIOError, InterruptedError):
            return True
        if not count:
            raise FileEnd
        self.position += count
        return self.position < self._stop
