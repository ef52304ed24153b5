"""Files over connections: to clients that take their time, leave, or have nothing more to say."""

import asyncio
import contextlib
import os
import socket

import pytest

from mirror.listener.file_sender import FileEnd, FileSender
from tests.support.names import MIB, content
from tests.support.waiting import LIMIT, eventually

DATA = content(8 * MIB)


@pytest.fixture
def descriptor(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with open(path, "rb") as file:
        yield file.fileno()


class Server(asyncio.Protocol):
    """The mirror's end of a connection."""

    def __init__(self):
        self.received = b""

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.received += data


@pytest.fixture
async def pair():
    """The server's protocol, and the client's blocking socket with a small buffer."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32 << 10)
    _, server = await asyncio.get_running_loop().connect_accepted_socket(Server, ours)
    with theirs:
        theirs.settimeout(LIMIT)
        yield server, theirs
    server.transport.abort()


def receive(client, count):
    """So many bytes, or fewer if the connection ends before."""
    data = bytearray()
    while len(data) < count and (piece := client.recv(count - len(data))):
        data += piece
    return bytes(data)


async def started(sender, stop):
    """A sender that has filled the socket's buffer, and waits."""
    task = asyncio.create_task(sender.send_until(stop))
    await eventually(lambda: sender.position > 0)
    await asyncio.sleep(0)
    assert not task.done()
    return task


def descriptors():
    return len(os.listdir("/proc/self/fd"))


async def test_small_part_is_sent_at_once(descriptor, pair):
    """What fits into the socket's buffer waits for nothing."""
    server, client = pair
    sender = FileSender(server.transport, descriptor, 5)
    sending = sender.send_until(1000)
    with pytest.raises(StopIteration):
        sending.send(None)
    assert sender.position == 1000
    assert receive(client, 995) == DATA[5:1000]


async def test_slow_client_gets_everything(descriptor, pair):
    """A client that takes less than the socket's buffer at a time gets every byte, and the connection can be used on."""
    server, client = pair
    before = descriptors()
    sender = FileSender(server.transport, descriptor, 0)
    task = await started(sender, 4 * MIB)
    assert await asyncio.to_thread(receive, client, 4 * MIB) == DATA[: 4 * MIB]
    await asyncio.wait_for(task, LIMIT)
    rest = asyncio.create_task(sender.send_until(8 * MIB))
    assert await asyncio.to_thread(receive, client, 4 * MIB) == DATA[4 * MIB :]
    await asyncio.wait_for(rest, LIMIT)
    client.sendall(b"next")
    await eventually(lambda: server.received == b"next")
    assert descriptors() == before


async def test_others_have_their_turn(descriptor, pair, monkeypatch):
    """A client that could take more at once gets one piece at a time."""
    monkeypatch.setattr("mirror.listener.file_sender._MAX_PIECE_BYTES", 10 << 10)
    server, client = pair
    sender = FileSender(server.transport, descriptor, 0)
    sending = sender.send_until(8 * MIB)
    sending.send(None)
    assert sender.position == 10 << 10
    sending.close()
    assert receive(client, 10 << 10) == DATA[: 10 << 10]


async def test_full_segments(descriptor):
    """The kernel makes full segments of a large body while it is sent, and holds nothing back after it."""
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.create_connection(listening.getsockname(), LIMIT) as client:
        ours = listening.accept()[0]
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 256 << 10)
        _, server = await asyncio.get_running_loop().connect_accepted_socket(Server, ours)
        task = await started(FileSender(server.transport, descriptor, 0), 8 * MIB - 1)
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK) == 1
        assert await asyncio.to_thread(receive, client, 8 * MIB - 1) == DATA[:-1]
        await asyncio.wait_for(task, LIMIT)
        assert ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_CORK) == 0
        server.transport.abort()


async def test_stops_at_what_is_not_in_memory(descriptor, pair, monkeypatch):
    """It looks before each piece, does not wait for the disk, and takes the caller's word for what has just been read."""
    server, client = pair
    memory = [MIB]
    monkeypatch.setattr("mirror.listener.file_sender.resident_until", lambda _, start, stop: min(stop, max(start, memory[0])))
    sender = FileSender(server.transport, descriptor, 0)
    task = await started(sender, 8 * MIB)
    assert await asyncio.to_thread(receive, client, MIB) == DATA[:MIB]
    await asyncio.wait_for(task, LIMIT)
    assert sender.position == MIB
    await sender.send_until(8 * MIB, known=MIB + 100)
    assert sender.position == MIB + 100
    memory[0] = 2 * MIB
    rest = asyncio.create_task(sender.send_until(8 * MIB))
    assert await asyncio.to_thread(receive, client, MIB) == DATA[MIB : 2 * MIB]
    await asyncio.wait_for(rest, LIMIT)
    assert sender.position == 2 * MIB


async def test_client_that_says_nothing_more(descriptor, pair):
    """A client that has closed its own direction still gets the whole."""
    server, client = pair
    task = await started(FileSender(server.transport, descriptor, 0), 8 * MIB)
    client.shutdown(socket.SHUT_WR)
    assert await asyncio.to_thread(receive, client, 8 * MIB) == DATA
    await asyncio.wait_for(task, LIMIT)


async def test_client_leaves(descriptor, pair):
    """The end of the connection ends the wait."""
    server, client = pair
    before = descriptors()
    task = await started(FileSender(server.transport, descriptor, 0), 8 * MIB)
    client.close()
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(task, LIMIT)
    assert descriptors() < before


async def test_transport_closes(descriptor, pair):
    """A connection that this side has ended gets nothing more."""
    server, client = pair
    sender = FileSender(server.transport, descriptor, 0)
    task = await started(sender, 8 * MIB)
    server.transport.close()
    sent = sender.position
    received = asyncio.create_task(asyncio.to_thread(receive, client, 8 * MIB))
    with pytest.raises(ConnectionError):
        await asyncio.wait_for(task, LIMIT)
    assert await received == DATA[:sent]
    with pytest.raises(ConnectionError):
        await sender.send_until(8 * MIB)


async def test_file_becomes_shorter(tmp_path, pair):
    """Bytes that are not there any more are no wait for ever."""
    server, client = pair
    path = tmp_path / "short"
    path.write_bytes(DATA)
    with open(path, "r+b") as file:
        task = await started(FileSender(server.transport, file.fileno(), 0), 8 * MIB)
        file.truncate(MIB)
        received = asyncio.create_task(asyncio.to_thread(receive, client, MIB))
        with pytest.raises(FileEnd):
            await asyncio.wait_for(task, LIMIT)
        assert len(await received) == MIB
        with pytest.raises(FileEnd):
            await FileSender(server.transport, file.fileno(), MIB).send_until(MIB + 1)


async def test_cancelled(descriptor, pair):
    """A cancelled wait leaves nothing behind, and the connection reads on."""
    server, client = pair
    before = descriptors()
    task = await started(FileSender(server.transport, descriptor, 0), 8 * MIB)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert descriptors() == before
    client.sendall(b"next")
    await eventually(lambda: server.received == b"next")
