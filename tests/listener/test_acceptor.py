"""Accepting connections when there are no descriptors: no spinning, one line, nobody waits for nothing."""

import asyncio
import errno
import os
import socket

import pytest
import structlog

from mirror.listener import acceptor
from mirror.listener.acceptor import Acceptor

LIMIT = 10.0


class Listening:
    """A socket that listens, and whose `accept` fails as it is told.

    Attributes:
        asked: how often it was asked for a connection.
    """

    def __init__(self):
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.socket.listen(4096)
        self.socket.setblocking(False)
        self.failure = None
        self.room = 0
        self.asked = 0

    def accept(self):
        self.asked += 1
        if self.failure is not None and self.room <= 0:
            raise OSError(self.failure, os.strerror(self.failure))
        self.room -= 1
        return self.socket.accept()

    def __getattr__(self, name):
        return getattr(self.socket, name)


class Echo(asyncio.Protocol):
    """Greets."""

    def connection_made(self, transport):
        transport.write(b"hello")
        transport.close()

    def abandoned(self):
        pass


@pytest.fixture
def listening():
    made = Listening()
    yield made
    made.socket.close()


@pytest.fixture
async def accepting(listening, monkeypatch):
    """An acceptor on `listening`, with pauses of a moment."""
    monkeypatch.setattr(acceptor, "_PAUSE_S", 0.01)
    monkeypatch.setattr(acceptor, "_CALM_S", LIMIT)
    relieved = []
    made = Acceptor(listening, lambda address: Echo(), lambda: relieved.append(True))
    made.relieved = relieved
    made.start()
    yield made
    made.close()


async def greeted(listening):
    """What a client gets."""
    reader, writer = await asyncio.open_connection(*listening.socket.getsockname())
    try:
        async with asyncio.timeout(LIMIT):
            return await reader.read()
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def until(condition):
    async with asyncio.timeout(LIMIT):
        while not condition():
            await asyncio.sleep(0.005)


async def test_shortage_is_one_line_and_no_spinning(listening, accepting, monkeypatch):
    """Each try is one look at the socket and a pause, whatever stands in the backlog; when there is room again all are served."""
    listening.failure = errno.EMFILE
    with structlog.testing.capture_logs() as log:
        waiting = [asyncio.create_task(greeted(listening)) for _ in range(50)]
        await until(lambda: listening.asked >= 20)
        assert accepting._short_since is not None
        assert [event["event"] for event in log] == ["accept_paused"]
        listening.failure = None
        assert await asyncio.gather(*waiting) == [b"hello"] * 50
        # Again and again a moment is no other shortage.
        for number in (errno.EMFILE, None) * 5:
            asked, listening.failure = listening.asked, number
            client = asyncio.create_task(greeted(listening))
            await until(lambda before=asked: listening.asked > before)
            listening.failure = None
            assert await client == b"hello"
        monkeypatch.setattr(acceptor, "_CALM_S", 0.0)
        assert await greeted(listening) == b"hello"
        assert [event["event"] for event in log] == ["accept_paused", "accept_resumed"]


async def test_lasting_shortage_ends_who_waits(listening, accepting, monkeypatch):
    """After a while idle connections are ended for new ones, and who stands in the backlog is not left there in silence."""
    monkeypatch.setattr(acceptor, "_SHORTAGE_S", 0.05)
    listening.failure = errno.EMFILE
    waiting = [asyncio.create_task(greeted(listening)) for _ in range(5)]
    await until(lambda: accepting.relieved)
    # The reserve descriptor, once it is given up.
    real = accepting._drop_reserve
    monkeypatch.setattr(accepting, "_drop_reserve", lambda: (real(), setattr(listening, "room", 100)))
    assert await asyncio.gather(*waiting) == [b""] * 5


async def test_no_noise_after_the_end(listening, accepting):
    """A pause that is under way when the acceptor is closed does not bring it back."""
    listening.failure = errno.ENFILE
    client = asyncio.create_task(greeted(listening))
    await until(lambda: listening.asked >= 2)
    accepting.close()
    asked = listening.asked
    await asyncio.sleep(0.05)
    assert listening.asked == asked
    assert await client == b""


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPROTO, errno.ENETDOWN])
async def test_one_connection_that_is_gone(listening, accepting, number):
    """An error that belongs to one connection stops nothing."""
    listening.failure = number
    client = asyncio.create_task(greeted(listening))
    await until(lambda: listening.asked >= 2)
    assert accepting._short_since is None
    listening.failure = None
    assert await client == b"hello"


async def test_refused_connection_is_closed(listening):
    """Who is not to be served has the connection ended at once."""
    made = Acceptor(listening, lambda address: None, lambda: None)
    made.start()
    assert await greeted(listening) == b""
    made.close()
