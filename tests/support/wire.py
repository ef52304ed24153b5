"""HTTP over a raw socket: requests no library would send, and answers to the byte."""

import asyncio
import json
from dataclasses import dataclass

from tests.support.waiting import LIMIT


@dataclass
class Reply:
    """An answer as it came; header names in lower case, the last of several of one name."""

    status: int
    version: str
    headers: dict[str, str]
    body: bytes

    def error(self):
        """The one error of an error answer (OCI distribution-spec, Error Codes)."""
        assert self.headers["content-type"] == "application/json", self
        (error,) = json.loads(self.body)["errors"]
        assert set(error) == {"code", "message", "detail"}
        assert error["message"]
        assert error["detail"]
        return error


class Wire:
    """One connection. Every wait ends after `LIMIT` seconds."""

    def __init__(self, port):
        self._port = port

    async def __aenter__(self):
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_):
        self.writer.close()

    async def send(self, data):
        self.writer.write(data)
        async with asyncio.timeout(LIMIT):
            await self.writer.drain()

    async def reply(self, head=False):
        """The next answer; `head` says that it has no body."""
        async with asyncio.timeout(LIMIT):
            first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
            version, status, _ = first.split(" ", 2)
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            size = 0 if head or status == "304" else int(headers["content-length"])
            return Reply(int(status), version, headers, await self.reader.readexactly(size))

    async def ended(self):
        """What still comes until the server ends the connection, in good order."""
        async with asyncio.timeout(LIMIT):
            return await self.reader.read()


def request(target, *headers, method="GET", version="HTTP/1.1"):
    """A request whose answer ends the connection; `target` and `headers` are bytes or text, and sent as they are."""
    lines = [f"{method} ".encode() + _bytes(target) + f" {version}".encode(), b"Host: mirror", b"Connection: close"]
    return b"\r\n".join([*lines, *map(_bytes, headers), b"", b""])


def _bytes(text):
    return text if isinstance(text, bytes) else text.encode()


async def ask(port, data, head=False):
    """Send bytes over a connection of their own and return the first answer."""
    async with Wire(port) as wire:
        await wire.send(data)
        return await wire.reply(head)
