"""Sends files over plain connections by sendfile(2).

asyncio's `sendfile` registers the socket again for every piece that a client takes, and pauses reading even if one piece is all.
A FileSender sends at once what fits into the socket's buffer, and registers the socket once for the rest.
"""

from __future__ import annotations

import asyncio
import os


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
        self._stop = position

    async def send_until(self, stop: int) -> None:
        """Send the bytes up to `stop`. The transport's buffer has to be empty.

        Raises:
            ConnectionError: the connection has ended.
            FileEnd: the file has become too short.
        """
        self._stop = stop
        if self._transport.is_closing():
            raise ConnectionResetError("the client has gone")
        self._send()
        if self.position < stop:
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
            self._send()
        except (OSError, FileEnd) as error:
            done.set_exception(error)
        else:
            if self.position == self._stop:
                done.set_result(None)

    def _send(self) -> None:
        try:
            count = os.sendfile(self._socket, self._descriptor, self.position, self._stop - self.position)
        except (BlockingIOError, InterruptedError):
            return
        if not count:
            raise FileEnd
        self.position += count
