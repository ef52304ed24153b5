"""A receiver of notifications over a real socket, which does with each request what the test says."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Self

from tests.support.waiting import LIMIT


@dataclass
class Received:
    """A request as it came; header names in lower case."""

    line: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """Answers requests with the statuses of `script` in turn, then with 200.

    Instead of a status it can be "cut" (the connection ends without an answer), "stall" (it stays, and nothing comes until
    `release` is set), or headers of a redirect as text.
    """

    def __init__(self, *script: int | str) -> None:
        self.script = list(script)
        self.received: list[Received] = []
        self.release = asyncio.Event()
        self._came = asyncio.Event()
        self._writers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/hook?token=hunter2"
        return self

    async def __aexit__(self, *_: object) -> None:
        self.release.set()
        self._server.close()
        for writer in self._writers:
            writer.close()

    async def got(self, count: int) -> list[Received]:
        """Wait until so many requests have come."""
        async with asyncio.timeout(LIMIT):
            while len(self.received) < count:
                self._came.clear()
                await self._came.wait()
        return self.received

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            does = self.script.pop(0) if self.script else 200
            self.received.append(Received(head[0], headers, body))
            self._came.set()
            if does == "stall":
                await self.release.wait()
            elif does != "cut":
                lines = does if isinstance(does, str) else f"HTTP/1.1 {does} Said So"
                writer.write(f"{lines}\r\nContent-Length: 0\r\n\r\n".encode())
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()
            self._writers.discard(writer)
