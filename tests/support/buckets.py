"""Buckets of a real S3 server (moto) in a process of its own, and a proxy before it that can fail."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Self
from xml.etree import ElementTree as ET

from tests.support.ports import free_port
from tests.support.waiting import wait_until

_PIECE = 64 << 10
# moto takes any signature, but keeps objects from who has none.
_SIGNED = "AWS4-HMAC-SHA256 Credential=id/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
_NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"


class BucketServer:
    """The process of moto; its buckets are empty when it starts."""

    def __init__(self) -> None:
        self.port = free_port()
        command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._answers, "moto answers")

    def bucket(self, name: str) -> TestBucket:
        """Make a bucket."""
        bucket = TestBucket(f"http://127.0.0.1:{self.port}/{name}", name)
        bucket.request("PUT")
        return bucket

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.process.pid, number)

    def close(self) -> None:
        """End it."""
        self.signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()

    def _answers(self) -> bool:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=5).close()
            return True
        return False


class TestBucket:
    """A bucket, as somebody beside the mirror sees and changes it."""

    __test__ = False

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self.name = name

    def request(self, method: str, key: str = "", data: bytes | None = None, **headers: str) -> Any:
        """The response, without an exception for a status."""
        separator = "/" if key and key[0] != "?" else ""
        body = b"" if data is None and method == "PUT" else data
        request = urllib.request.Request(self._url + separator + key, body, {"Authorization": _SIGNED, **headers}, method=method)
        try:
            return urllib.request.urlopen(request, timeout=30)
        except urllib.error.HTTPError as error:
            return error

    def objects(self) -> dict[str, int]:
        """The names of all objects, with their bytes."""
        with self.request("GET", "?list-type=2") as response:
            tree = ET.fromstring(response.read())
        return {
            str(entry.findtext(f"{_NAMESPACE}Key")): int(entry.findtext(f"{_NAMESPACE}Size") or 0)
            for entry in tree.iter(f"{_NAMESPACE}Contents")
        }

    def get(self, key: str) -> bytes | None:
        """The bytes of an object, or None."""
        with self.request("GET", key) as response:
            return response.read() if response.status == 200 else None

    def put(self, key: str, data: bytes) -> None:
        """Write an object."""
        self.request("PUT", key, data, **{"Content-Type": "application/octet-stream"}).close()

    def delete(self, key: str) -> None:
        """Delete an object."""
        self.request("DELETE", key).close()


class BucketProxy:
    """A socket before the server that cuts, stalls, refuses, or answers something else.

    Attributes:
        status: answer every request with this status instead of passing it on.
        refused: answer requests whose first line has this text by `refusal`.
        refusal: a status.
        held: answer no request whose first line has this text.
        cut_after: close a connection after so many bytes of answers.
        stall_after: send no more after so many bytes of answers.
        seen: the first lines of all requests.
    """

    def __init__(self, server: BucketServer) -> None:
        self._server = server
        self.port = free_port()
        self.status = 0
        self.refused: str | None = None
        self.refusal = 403
        self.held: str | None = None
        self.cut_after: int | None = None
        self.stall_after: int | None = None
        self.seen: list[str] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """For `objects.endpoint`."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Listen."""
        self._listening = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def close(self) -> None:
        """Refuse connections, and close those that are open."""
        self._listening.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await self._pass_on(reader, writer)
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request for each connection, so that its length need not be known."""
        head = await reader.readuntil(b"\r\n\r\n")
        first_line = head.partition(b"\r\n")[0].decode()
        self.seen.append(first_line)
        lines = [line for line in head.rstrip().split(b"\r\n") if not line.lower().startswith(b"connection:")]
        length = next((int(line.partition(b":")[2]) for line in lines if line.lower().startswith(b"content-length:")), 0)
        body = await reader.readexactly(length)
        if self.held is not None and self.held in first_line:
            await asyncio.Event().wait()
        status = self.refusal if self.refused is not None and self.refused in first_line else self.status
        if status:
            writer.write(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
            await writer.drain()
            return
        below, above = await asyncio.open_connection("127.0.0.1", self._server.port)
        try:
            above.write(b"\r\n".join([*lines, b"Connection: close", b"", b""]) + body)
            await self._answer(below, writer, is_read=head.startswith(b"GET"))
        finally:
            above.close()

    async def _answer(self, below: asyncio.StreamReader, writer: asyncio.StreamWriter, *, is_read: bool) -> None:
        sent = 0
        while piece := await below.read(_PIECE):
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
            if is_read and self.cut_after is not None and sent >= self.cut_after:
                return
            if is_read and self.stall_after is not None and sent >= self.stall_after:
                await asyncio.Event().wait()
