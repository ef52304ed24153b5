"""Blobs on their way through a mirror, and clients that look closely."""

import asyncio
import contextlib

from tests.fakehub import Rule
from tests.support.names import content
from tests.support.waiting import LIMIT

REPOSITORY = "library/app"
CDN = Rule(host="cdn", method="GET", times=None)


class Transfer:
    """One blob of the hub, and the mirror through which it is pulled."""

    def __init__(self, hub, mirror, size, seed=1):
        self.hub = hub
        self.mirror = mirror
        self.data = content(size, seed)
        self.digest = hub.add_blob(REPOSITORY, self.data)
        self.path = f"/v2/{REPOSITORY}/blobs/{self.digest}"

    def gate(self, after):
        """Hold what the CDN sends after so many bytes."""
        return self.hub.gate(CDN, after)

    async def started(self, after):
        """Begin a pull that upstream holds after so many bytes; returns the gate and the client, who has its first byte."""
        gate = self.gate(after)
        client = await self.client()
        await gate.reached.wait()
        return gate, client

    async def client(self, **headers):
        """Start a pull and wait for its first byte."""
        client = Client(self, await self.mirror.session.get(self.mirror.url(self.path), headers=headers))
        await client.first()
        return client

    async def get(self, **headers):
        return await self.mirror.get(self.path, headers=headers)

    def fetched(self):
        """The requests that reached the CDN."""
        return self.hub.find(host="cdn", method="GET")

    def asked(self):
        """The Range headers of the requests that reached the CDN, in order."""
        return [seen.range for seen in self.fetched()]

    async def held(self):
        """Wait for the end of the download, and tell whether the blob is in the store."""
        await self.mirror.idle()
        return self.mirror.holds(self.digest)


class Client:
    """A response that is read piece by piece."""

    def __init__(self, transfer, response):
        self.transfer = transfer
        self.response = response
        self.data = b""

    @property
    def cache(self):
        return self.response.headers["X-Cache"]

    async def first(self):
        self.data += await self.response.content.readany()
        assert self.data

    async def has(self, count):
        """Wait for so many bytes in all."""
        async with asyncio.timeout(LIMIT):
            while len(self.data) < count:
                piece = await self.response.content.readany()
                assert piece, f"ended after {len(self.data)} bytes"
                self.data += piece

    async def whole(self):
        """The whole body."""
        async with asyncio.timeout(LIMIT):
            self.data += await self.response.content.read()
        return self.data

    async def leave(self):
        """Go away in the middle."""
        self.response.close()


@contextlib.asynccontextmanager
async def raw(mirror, path, **headers):
    """A request on a connection of its own, whose every byte and whose end the test sees."""
    reader, writer = await asyncio.open_connection("127.0.0.1", mirror.port)
    lines = [f"GET {path} HTTP/1.1", "Host: mirror", *(f"{name}: {value}" for name, value in headers.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode())
    try:
        yield reader
    finally:
        writer.transport.abort()


async def raw_head(reader):
    """Status and headers of a raw answer, names in lower case."""
    async with asyncio.timeout(LIMIT):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    status, *lines = head.rstrip().split("\r\n")
    pairs = (line.split(": ", 1) for line in lines)
    return int(status.split()[1]), {name.lower(): value for name, value in pairs}


async def raw_body(reader):
    """Everything up to the orderly end of the connection; a reset is a ConnectionResetError."""
    async with asyncio.timeout(LIMIT):
        return await reader.read()
