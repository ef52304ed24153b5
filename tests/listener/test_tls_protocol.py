"""Bytes over TLS: to clients that read nothing for a while, leave, or say goodbye."""

import asyncio
import socket
import ssl
import types

import pytest

from mirror.listener import responses
from mirror.listener.tls_protocol import TLS, TlsProtocol
from tests.support.certificates import Authority
from tests.support.names import MIB, content
from tests.support.waiting import LIMIT, eventually

DATA = content(8 * MIB)
PIECE = 64 << 10
SOCKET_BUFFER = 32 << 10


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


class Server(asyncio.Protocol):
    """The mirror's end of a connection."""

    def connection_made(self, transport):
        self.transport = transport


class Client:
    """A TLS client over a socket that is read only when it is told."""

    def __init__(self, end, authority):
        self.socket = end
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=authority.certificate)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")

    def shake_hands(self):
        """Blocks."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self._exchange()
            else:
                self.socket.sendall(self._outgoing.read())
                return

    def receive(self, count):
        """So many bytes; blocks."""
        data = bytearray()
        while len(data) < count:
            try:
                data += self._tls.read(count - len(data))
            except ssl.SSLWantReadError:
                self._exchange()
        return bytes(data)

    def _exchange(self):
        if self._outgoing.pending:
            self.socket.sendall(self._outgoing.read())
        received = self.socket.recv(MIB)
        assert received, "the connection was closed"
        self._incoming.write(received)


@pytest.fixture
async def pair(authority):
    """The server's protocol of TLS and the client, with a small buffer in between."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
    theirs.settimeout(LIMIT)
    loop = asyncio.get_running_loop()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("localhost"))
    app, ready = Server(), loop.create_future()
    protocol = TlsProtocol(loop, app, context, ready, server_side=True)
    await loop.connect_accepted_socket(lambda: protocol, ours)
    client = Client(theirs, authority)
    with theirs:
        await asyncio.gather(ready, asyncio.to_thread(client.shake_hands))
        assert app.transport.get_extra_info(TLS) is protocol
        assert app.transport.get_extra_info("peername", "nobody") is not protocol
        yield protocol, client, app.transport
    app.transport.abort()


def fill(tls):
    """Write until the socket is full; how many bytes that took."""
    position = 0
    while not tls.is_full:
        tls.write(DATA[position : position + PIECE])
        position += PIECE
    return position


async def send(tls):
    """Write all, each piece when the socket has taken those before it."""
    for position in range(0, len(DATA), PIECE):
        await asyncio.wait_for(tls.wait_writable(), LIMIT)
        tls.write(DATA[position : position + PIECE])


async def test_nothing_is_encrypted_ahead(pair):
    """Of what a client does not read, its socket's buffer and one piece are in memory."""
    tls, _, transport = pair
    assert fill(tls) <= 4 * SOCKET_BUFFER + PIECE
    assert transport.get_write_buffer_size() == 0


async def test_all_arrives_in_order(pair):
    """However often the socket is full."""
    tls, client, _ = pair
    received = asyncio.create_task(asyncio.to_thread(client.receive, len(DATA)))
    await send(tls)
    assert await received == DATA


async def test_order_of_all_ways_to_write(pair):
    """What is written while the socket is full, by either way, comes after what waits for it."""
    tls, client, transport = pair
    count = fill(tls)
    transport.write(b"by the transport")
    tls.write(b"by the protocol")
    waiting = asyncio.create_task(tls.wait_writable())
    received = await asyncio.to_thread(client.receive, count + 31)
    await asyncio.wait_for(waiting, LIMIT)
    assert received == DATA[:count] + b"by the transportby the protocol"


async def test_memory_of_a_piece_may_be_used_again(pair):
    """Also while the piece waits for the socket."""
    tls, client, _ = pair
    count = fill(tls)
    piece = bytearray(b"written")
    tls.write(memoryview(piece))
    piece[:] = b"changed"
    assert await asyncio.to_thread(client.receive, count + len(piece)) == DATA[:count] + b"written"


async def test_client_that_talks_no_tls(pair):
    """Who writes meanwhile learns of it as of a client that has gone."""
    tls, client, transport = pair
    await asyncio.to_thread(client.socket.sendall, b"GET / HTTP/1.1\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        await send(tls)
    await eventually(transport.is_closing)


async def test_failure_of_tls(pair):
    """An alert that has been received ends TLS before asyncio ends the connection."""
    tls, _, _ = pair
    tls._incoming.write(b"no record at all")
    with pytest.raises(ssl.SSLError):
        tls._sslobj.read(1)
    with pytest.raises(ConnectionResetError):
        tls.write(b"late")


@pytest.mark.parametrize("leave", [lambda client: client.socket.close(), lambda client: None], ids=["client", "server"])
async def test_end_of_the_connection(pair, leave):
    """Whoever waits goes on when the connection ends, and is told when it writes."""
    tls, client, transport = pair
    fill(tls)
    waiting = asyncio.create_task(tls.wait_writable())
    await asyncio.sleep(0)
    assert not waiting.done()
    leave(client)
    transport.abort()
    await asyncio.wait_for(waiting, LIMIT)
    with pytest.raises(ConnectionResetError):
        tls.write(b"late")


async def test_goodbye(pair):
    """After the transport is closed nothing more is written; what was written before arrives."""
    tls, client, transport = pair
    count = fill(tls)
    transport.close()
    with pytest.raises(ConnectionResetError):
        tls.write(b"late")
    assert await asyncio.to_thread(client.receive, count) == DATA[:count]
    await eventually(lambda: not tls.is_full)


async def test_one_who_waits_may_leave(pair):
    """A cancelled wait disturbs no other one."""
    tls, client, _ = pair
    count = fill(tls)
    leaving, staying = (asyncio.create_task(tls.wait_writable()) for _ in range(2))
    await asyncio.sleep(0)
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    await asyncio.to_thread(client.receive, count)
    await asyncio.wait_for(staying, LIMIT)


async def test_others_get_their_turn(tmp_path, monkeypatch):
    """While a client takes bytes as fast as they come, also if a part of a piece only was in memory at first."""
    path = tmp_path / "blob"
    path.write_bytes(DATA)
    counts = iter([1000])
    read = responses.read_resident_into

    def in_part(descriptor, buffer, start):
        return read(descriptor, buffer[: next(counts, None)], start)

    monkeypatch.setattr(responses, "read_resident_into", in_part)
    tls = types.SimpleNamespace(is_full=False, write=lambda _: None)
    transport = types.SimpleNamespace(get_extra_info=lambda _: tls)
    request, response = types.SimpleNamespace(transport=transport), types.SimpleNamespace(sent=0)
    turns = 0

    async def other():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(other())
    with path.open("rb") as file:
        await responses._send_encrypted(request, response, responses.Span(file, 0, len(DATA)), None)
    running.cancel()
    assert (response.sent, turns >= len(DATA) // MIB - 1) == (len(DATA), True)
