"""Receives the body of a response straight into buffers, below the HTTP client that has read its head.

The client's own way costs an object, a copy and a wake-up for each piece that the kernel hands out. Here the kernel writes
into a buffer of up to 2 MiB (`asyncio.BufferedProtocol`), and the reader of the body wakes once for all of its bytes.
The connection goes back to the client's pool when the body has been read to its end.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import aiohttp

from mirror.errors import UpstreamTimeout
from mirror.upstream.intake import Intake, Throttle

# A step is handed out when its buffer is full, or when its first byte is this old: a slow upstream's bytes are passed on as they
# arrive, a fast one's in large steps.
_DELAY_S = 0.002
# The first step is not larger, nor is the second one received before it is asked for: a client waits for the first byte, and
# receiving 2 MiB into new memory holds up the event loop for milliseconds.
FIRST_BYTES = 64 << 10
# The most that TLS may have deciphered beyond what it says is still to be read (RFC 8446 section 5.1).
_RECORD = 16 << 10


class BodyEnded(Exception):
    """The connection ended before the body did."""


class Body(Protocol):
    """The body of a response. Close it when done."""

    async def step(self) -> memoryview:
        """The bytes that have come since the last step, at least one; nothing at the end of the body.

        They are good until the next step is asked for, or the body is closed.

        Raises:
            BodyEnded: the connection has ended.
            UpstreamTimeout: no byte came within the stall time.
        """
        ...

    def close(self, *, is_used: bool = True) -> None:
        """End it; a connection whose body has not been read to its end is closed.

        Args:
            is_used: a thread that nobody waits for any more may still be reading from the last step.
        """
        ...


def open_body(response: aiohttp.ClientResponse, intake: Intake, stall: float) -> Body:
    """The body of a response whose head has been read.

    Args:
        stall: seconds without a byte after which it is taken to hang.
    """
    if response.content_length is None or response.connection is None:
        return ParsedBody(response, intake, stall)
    begun = _received(response)
    left = response.content_length - len(begun)
    return BodyReceiver(response, intake, begun, left, stall) if left else ParsedBody(response, intake, stall, begun)


class ParsedBody:
    """A body as the HTTP client hands it out: one whose length is known at its end only, or that has arrived already.

    Args:
        begun: its beginning, if that has been taken from the response.
    """

    def __init__(self, response: aiohttp.ClientResponse, intake: Intake, stall: float, begun: bytes = b"") -> None:
        self._response = response
        self._rate = intake.rate
        self._stall = stall
        self._begun = begun
        self._delay = 0.0

    async def step(self) -> memoryview:
        """See `Body`."""
        begun, self._begun = self._begun, b""
        if begun:
            return memoryview(begun)
        # The client stops receiving by itself while nothing reads.
        await asyncio.sleep(self._delay)
        try:
            async with asyncio.timeout(self._stall):
                piece = await self._response.content.readany()
        except TimeoutError as error:
            raise _silence(self._response, self._stall) from error
        except aiohttp.ClientError as error:
            raise BodyEnded from error
        self._delay = self._rate.spend(len(piece), asyncio.get_running_loop().time())
        return memoryview(piece)

    def close(self, *, is_used: bool = True) -> None:
        """The response gives its connection back by itself."""


class BodyReceiver(asyncio.BufferedProtocol):
    """The rest of one body, of a length that is known (RFC 9112 section 6.3).

    Args:
        begun: what the client has received of it.
        left: bytes that are still to come, at least one.
    """

    def __init__(self, response: aiohttp.ClientResponse, intake: Intake, begun: bytes, left: int, stall: float) -> None:
        connection = response.connection
        assert connection is not None
        assert connection.transport is not None
        assert connection.protocol is not None
        self._loop = asyncio.get_running_loop()
        self._response = response
        self._transport = connection.transport
        self._handler = connection.protocol
        self._pool = intake.buffers
        self._throttle = Throttle(intake.rate, self._resume)
        # Asked once for each step: it is on the path of every piece that the kernel hands out.
        self._is_limited = False
        self._begun = begun
        self._left = left
        self._stall = stall
        self._is_last = _is_last(response)
        self._buffer: bytearray | None = None
        self._filled = 0
        self._handed: bytearray | None = None
        self._first = True
        # `_received` has paused the transport.
        self._paused = True
        self._lost = self._excess = self._finished = False
        self._timer: asyncio.TimerHandle | None = None
        self._ripe = False
        self._waiter: asyncio.Future[None] | None = None
        # A late reader of an earlier response on this connection makes the client resume the transport: hide it.
        self._handler.transport = None
        self._transport.set_protocol(self)
        self._throttle.spend(len(begun))
        if not begun:
            self._resume()

    async def step(self) -> memoryview:
        """See `Body`."""
        if self._begun:
            begun, self._begun, self._first = self._begun, b"", False
            return memoryview(begun)
        self._take_back()
        self._resume()
        if not self._is_due():
            await self._wait()
        if not self._filled:
            return memoryview(b"")
        assert self._buffer is not None
        self._handed, self._buffer = self._buffer, None
        step = memoryview(self._handed)[: self._filled]
        was_first, self._first, self._filled = self._first, False, 0
        self._stop_timer()
        if not self._left:
            self._finish()
        elif not was_first:
            self._resume()
        elif not self._paused:
            self._pause()
        return step

    def close(self, *, is_used: bool = True) -> None:
        """See `Body`."""
        self._stop_timer()
        self._throttle.cancel()
        if not self._finished:
            # Also if every byte has come: the client, from which the transport is kept, could not close it.
            self._end()
        if self._handed is not None and is_used:
            self._pool.forget(self._handed)
            self._handed = None
        self._take_back()
        if self._buffer is not None:
            self._pool.give_back(self._buffer)
            self._buffer = None

    # ---- asyncio.BufferedProtocol

    def get_buffer(self, sizehint: int) -> memoryview:
        """The memory for the next bytes, one more than the body has: a peer that sends it gets no further request."""
        # After the peer's end asyncio reads once from TLS, and drops what the buffer does not take.
        may_end, room = self._is_last and sizehint > 0, self._left + 1
        if self._buffer is None:
            most = min(room, FIRST_BYTES) if self._first else room
            self._buffer = self._pool.lend(sizehint + _RECORD if may_end else 0, most)
            self._is_limited = self._throttle.is_limited
        if self._is_limited and not may_end:
            room = self._throttle.room(room)
        return memoryview(self._buffer)[self._filled : self._filled + room]

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        if nbytes > self._left:
            self._excess, nbytes = True, self._left
        self._filled += nbytes
        self._left -= nbytes
        if (self._is_limited and not self._throttle.spend(nbytes)) or self._is_full:
            self._pause()
        if self._is_due():
            self._wake()
        elif self._timer is None:
            self._timer = self._loop.call_later(_DELAY_S, self._ripen)

    def eof_received(self) -> bool:
        """The peer has closed: so does this side."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Release the connection: neither this body nor the client can use it."""
        self._lost = True
        self._wake()
        self._handler.connection_lost(exc)

    # ---- inside

    async def _wait(self) -> None:
        limit = self._loop.call_later(self._stall + self._throttle.remaining, self._time_out)
        try:
            while not self._is_due():
                if self._lost:
                    raise BodyEnded
                self._waiter = self._loop.create_future()
                await self._waiter
        finally:
            limit.cancel()
            self._waiter = None

    def _time_out(self) -> None:
        if self._filled:
            # It came while the event loop was busy for as long as the limit.
            self._ripen()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(_silence(self._response, self._stall))

    def _is_due(self) -> bool:
        if not self._filled:
            return not self._left
        return self._first or self._ripe or self._lost or self._is_full

    @property
    def _is_full(self) -> bool:
        """Whether nothing more can be received before a step is taken."""
        return not self._left or (self._buffer is not None and self._filled == len(self._buffer))

    def _ripen(self) -> None:
        self._ripe = True
        self._wake()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._ripe = None, False

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _take_back(self) -> None:
        if self._handed is not None:
            self._pool.give_back(self._handed)
            self._handed = None

    def _pause(self) -> None:
        self._paused = True
        self._transport.pause_reading()

    def _resume(self) -> None:
        if self._paused and not (self._lost or self._is_full or self._throttle.is_closed):
            self._paused = False
            self._transport.resume_reading()

    def _finish(self) -> None:
        """Give the connection back, if it is good for another request."""
        if self._excess or self._lost:
            self._end()
            return
        self._finished = True
        self._throttle.cancel()
        self._transport.set_protocol(self._handler)
        self._handler.transport = self._transport
        self._response.content.feed_eof()

    def _end(self) -> None:
        """End the connection."""
        self._finished = self._lost = True
        self._transport.abort()
        self._response.close()


def _silence(response: aiohttp.ClientResponse, stall: float) -> UpstreamTimeout:
    return UpstreamTimeout(f"{response.url.host} sent nothing for {stall:g} s")


def _is_last(response: aiohttp.ClientResponse) -> bool:
    """Whether upstream ends the connection behind this body (RFC 9112 section 9.3)."""
    options = ",".join(response.headers.getall("Connection", ())).lower().split(",")
    persists = response.version is not None and response.version >= aiohttp.HttpVersion11
    return not persists or "close" in (option.strip() for option in options)


def _received(response: aiohttp.ClientResponse) -> bytes:
    """Take what the client has received of a body already, and have it receive nothing more."""
    taken: list[bytes] = []
    # Reading makes it resume: it may have paused in the middle of what the kernel had handed out.
    while True:
        if response.connection is not None and response.connection.transport is not None:
            response.connection.transport.pause_reading()
        piece = response.content.read_nowait(-1)
        if not piece:
            return b"".join(taken)
        taken.append(piece)
