"""A line that damages a byte of what an HTTP server sends."""

import asyncio
import contextlib
from typing import Self

_BLOCK = 64 << 10


class DamagingLine:
    """Passes connections on to a port of this machine, and changes a byte of each connection's answers, far into the body.

    Attributes:
        port: of the line.
        damaged: how many connections have had a byte changed.
    """

    def __init__(self, target: int, at: int) -> None:
        """
        Args:
            target: the port of the server.
            at: the position of the byte that is changed, counted from the first byte that the server sends.
        """
        self.port = 0
        self.damaged = 0
        self._target = target
        self._at = at

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    @property
    def url(self) -> str:
        """What to request."""
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            near, far = await asyncio.open_connection("127.0.0.1", self._target)
            try:
                await asyncio.gather(self._pass_on(reader, far, -1), self._pass_on(near, writer, self._at))
            finally:
                far.close()
                writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, at: int) -> None:
        position = 0
        while block := bytearray(await reader.read(_BLOCK)):
            if position <= at < position + len(block):
                block[at - position] ^= 1
                self.damaged += 1
            position += len(block)
            writer.write(block)
            await writer.drain()
        writer.write_eof()
