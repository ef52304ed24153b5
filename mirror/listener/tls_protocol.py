"""The server side of TLS."""

from __future__ import annotations

import asyncio
import ssl
from asyncio import sslproto
from typing import Any, Final

TLS: Final = "tls_protocol"
"""The name under which `get_extra_info` of a transport returns its TlsProtocol."""


class TlsProtocol(sslproto.SSLProtocol):
    """A connection with TLS that sends bodies in few steps, and encrypts them when its socket takes them.

    asyncio encrypts 512 KiB ahead for a client that reads slowly. These leave the processor's cache before they are sent, and
    take memory for each such client.
    """

    # Requests are small, so the receive buffer is smaller than asyncio's 256 KiB.
    max_size = 16 << 10

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        # Typeshed does not know what a subclass sees of asyncio's.
        self._loop: asyncio.AbstractEventLoop
        self._state: Any
        self._sslobj: Any
        self._outgoing: Any
        self._transport: Any
        self._full: asyncio.Future[None] | None = None

    def connection_made(self, transport: Any) -> None:
        """Start the handshake."""
        # Whatever the socket does not take at once makes it full.
        transport.set_write_buffer_limits(high=0)
        super().connection_made(transport)

    def pause_writing(self) -> None:
        """Encrypted bytes wait for the socket."""
        super().pause_writing()
        self._full = self._loop.create_future()

    def resume_writing(self) -> None:
        """The socket has taken all of them."""
        self._wake()
        super().resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """End the wait for the socket."""
        self._wake()
        super().connection_lost(exc)

    @property
    def is_full(self) -> bool:
        """Encrypted bytes wait for the socket."""
        return self._full is not None

    async def wait_writable(self) -> None:
        """Return when the socket has taken everything that was written, or when the connection has ended."""
        # What was written during a handshake may fill it again.
        while self._full is not None:
            await asyncio.shield(self._full)

    def write(self, piece: bytes | memoryview) -> None:
        """Encrypt bytes and send them. What the socket does not take waits, as does everything while it is full.

        The memory of `piece` may be used again afterwards.

        Raises:
            ConnectionError: the connection has ended, or is about to.
        """
        if self._state is not sslproto.SSLProtocolState.WRAPPED or self._transport is None:
            raise ConnectionResetError("the client has gone")
        if self._full is not None or self._write_backlog:
            self._write_appdata([bytes(piece)])
            return
        try:
            # asyncio's own steps up to here cost a tenth of the whole.
            self._sslobj.write(piece)
        except sslproto.SSLAgainErrors:
            self._write_appdata([bytes(piece)])
        except ssl.SSLError as error:
            raise ConnectionResetError("the client has broken off") from error
        else:
            self._transport.write(self._outgoing.read())

    def _wake(self) -> None:
        full, self._full = self._full, None
        if full is not None and not full.done():
            full.set_result(None)

    def _get_extra_info(self, name: str, default: Any = None) -> Any:
        return self if name == TLS else super()._get_extra_info(name, default)
