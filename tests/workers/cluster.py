"""A mirror of several worker processes, and connections to a certain one of them."""

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path

from tests.support.processes import Served
from tests.support.waiting import LIMIT, eventually


class Cluster(Served):
    """A mirror with workers; their number is 2 unless said otherwise."""

    def __init__(self, hub, directory, **settings):
        defaults = {"workers": 2, "tags": {"ttl": "0s"}, "downloads": {"stall_timeout": "90s", "prefetch": False}}
        super().__init__(hub, directory, **{**defaults, **settings})
        self.settings["storage"] = {"path": str(self.store), "min_free": "0", **settings.get("storage", {})}
        self.write()

    async def __aenter__(self):
        await super().__aenter__()
        await self.logged('"serving"', self.settings["workers"])
        return self

    async def __aexit__(self, *_):
        # Killed with their supervisor: workers alone would first let their clients finish.
        workers = self.workers()
        if self.process.returncode is None:
            self.process.kill()
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await super().__aexit__()

    def workers(self):
        """The process ids of the workers that live, oldest first."""
        return children(self.process.pid)

    async def pull(self, path, worker=None, *headers):
        """Begin to read over a connection of its own, to a certain worker if that is said; `headers` are whole lines."""
        async with self._stopped(worker):
            return await Pull(self.port, headers, self.host).begin(path, self if worker is not None else None)

    async def admin(self, path, worker=None, method="GET", **body):
        """The body of an answer at the admin address."""
        async with self._stopped(worker):
            pull = await Pull(self.admin_port, host=self.host).begin(path, self if worker is not None else None, method, **body)
        return await pull.rest()

    async def page(self, path, worker, *headers):
        """A page of a certain worker: the request, and the text of the answer."""
        async with self._stopped(worker):
            pull = await Pull(self.admin_port, headers, self.host).begin(path, self)
            text = (await pull.rest()).decode()
        return pull, text

    @contextlib.asynccontextmanager
    async def _stopped(self, worker):
        """Stop all workers but one, so that this one accepts; none if no worker is named."""
        others = [pid for pid in self.workers() if worker not in (None, pid)]
        try:
            for pid in others:
                os.kill(pid, signal.SIGSTOP)
            for pid in others:
                # The signal is sent, but on another core the process may still be accepting.
                await eventually(lambda pid=pid: state(pid) in ("T", None), "a stopped worker")
            yield
        finally:
            for pid in others:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    async def metrics(self, worker=None):
        """Every sample of /metrics by its name with labels."""
        text = (await self.admin("/metrics", worker)).decode()
        lines = (line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#"))
        return {name: float(value) for name, value in lines}

    def files(self, below):
        """Files of the store below a directory."""
        return sorted(path for path in (self.store / below).rglob("*") if path.is_file())


class Pull:
    """One request over a connection of its own."""

    def __init__(self, port, headers=(), host="127.0.0.1"):
        self._host = host
        self._port = port
        self._headers = headers
        self.writer = None

    async def begin(self, path, accepted_by=None, method="GET", **body):
        """Connect, with `accepted_by` wait until one of that mirror's workers has the connection, and send the request."""
        self.reader, self.writer = await asyncio.open_connection(self._host, self._port, limit=1 << 20)
        data = json.dumps(body).encode() if body else b""
        head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(data)}\r\n"
        head += "\r\n".join(["Content-Type: application/json", *self._headers, "", ""])
        self.local = self.writer.get_extra_info("sockname")[1]
        if accepted_by is not None:
            self.worker = await eventually(lambda: owner(self._port, self.local, accepted_by.workers()), "accepted")
        self.writer.write(head.encode() + data)
        return self

    async def head(self):
        """Wait for the status and the headers."""
        async with asyncio.timeout(LIMIT):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().rstrip().split("\r\n")
        self.status = int(lines[0].split()[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        self.length = int(self.headers["content-length"])
        self.got = bytearray()
        return self

    async def read(self, size):
        """Read so many bytes of the body."""
        async with asyncio.timeout(LIMIT):
            self.got += await self.reader.readexactly(size)
        return self

    async def rest(self):
        """The whole body, or what came of it."""
        if not hasattr(self, "status"):
            await self.head()
        try:
            async with asyncio.timeout(LIMIT):
                while data := await self.reader.read(1 << 18):
                    self.got += data
        except ConnectionError:
            pass
        finally:
            await self.close()
        return bytes(self.got)

    async def close(self):
        """Leave, whatever has come."""
        if self.writer is not None:
            self.writer.close()
            with contextlib.suppress(OSError):
                await self.writer.wait_closed()


def children(pid):
    """Processes that a process has started and that live, oldest first."""
    try:
        found = [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []
    return [child for child in found if state(child) not in ("Z", None)]


def state(pid):
    """The state of a process, a letter; None if there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None


def owner(port, client_port, pids):
    """Which of the processes has the server's end of a loopback connection."""
    inode = None
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, remote, *fields = line.split()[1:]
        if int(local.partition(":")[2], 16) == port and int(remote.partition(":")[2], 16) == client_port:
            inode = fields[6]
    if inode in (None, "0"):
        return None
    for pid in pids:
        with contextlib.suppress(OSError):
            for descriptor in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(descriptor) == f"socket:[{inode}]":
                        return pid
    return None


def driver(store, digest, pids):
    """Which of the processes drives the download of a blob: it holds the driver lock, and so writes."""
    path = Path(store, "partial", *digest.split(":"))
    inode = path.stat().st_ino
    for pid in pids:
        for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
            with contextlib.suppress(OSError):
                text = entry.read_text()
                if f"ino:\t{inode}\n" in text and f" {1 << 62} {1 << 62}" in text:
                    return pid
    return None
