"""Several mirrors that are one cluster, and their Redis: all real processes."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from copy import deepcopy
from pathlib import Path

from prometheus_client import CollectorRegistry, Histogram

from mirror.cluster.link import Link
from mirror.cluster.redis_connections import RedisAddress
from tests.e2e.harness.process import Program, find_command, listening
from tests.support.ports import free_port
from tests.support.waiting import LIMIT, eventually
from tests.workers.cluster import Cluster, Pull

SECRET = "a secret of forty characters, more or less"


class RedisServer:
    """A `redis-server` without persistence, which can be killed, stopped and started empty."""

    def __init__(self, directory: Path, *options: str, host: str = "127.0.0.1") -> None:
        """Start it."""
        self.port = free_port()
        self._host = host
        self._directory = directory
        self._options = options
        self._program: Program | None = None
        self.start()

    @property
    def url(self) -> str:
        """For `cluster.redis.url`."""
        return f"redis://{self._host}:{self.port}/0"

    def start(self) -> None:
        """Start it, empty."""
        options = ["--port", str(self.port), "--bind", self._host, "--save", "", "--appendonly", "no", "--protected-mode", "no"]
        options += ["--dir", str(self._directory), *self._options]
        self._program = Program(["redis-server", *options], self._directory / "redis.log")
        self._program.wait_ready(lambda: listening(self.port, self._host), "accepts connections", LIMIT)

    def signal(self, number: int) -> None:
        """Send it a signal; SIGKILL ends it."""
        assert self._program is not None
        os.kill(self._program.pid, number)
        if number == signal.SIGKILL:
            self._program.stop()

    async def command(self, *words: str) -> list[str]:
        """The words of the answer to a command."""
        command = [find_command("redis-cli"), "-h", self._host, "-p", str(self.port), "--raw", *words]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        out, _ = await asyncio.wait_for(process.communicate(), LIMIT)
        return out.decode().split()

    async def states(self) -> list[str]:
        """The state of each lease."""
        values = [" ".join(await self.command("get", key)) for key in await self.command("keys", "*:b:*")]
        return [value.partition("|")[0] for value in values]

    def close(self) -> None:
        """End it."""
        assert self._program is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._program.pid, signal.SIGCONT)
        self._program.stop()


@contextlib.asynccontextmanager
async def running_link(url: str, timeout_s: float = 5.0, **settings):
    """A link that probes Redis; it may not be up yet."""
    link = Link(RedisAddress(url, timeout_s, **settings), Histogram("calls", "", registry=CollectorRegistry()), "probe")
    probing = asyncio.create_task(link.run())
    try:
        yield link
    finally:
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)
        await link.close()


class Node(Cluster):
    """A mirror with two workers that belongs to a cluster."""

    def __init__(self, hub, directory: Path, server: RedisServer, **settings) -> None:
        directory.mkdir()
        secret = directory / "secret"
        secret.write_text(SECRET)
        self.node_port = free_port()
        own = {
            # A busy machine is neither a slow Redis nor a node that hangs.
            "redis": {"url": server.url, "timeout": "5s"},
            "listen": f"{self.host}:{self.node_port}",
            "secret_file": str(secret),
            "stall_timeout": "15s",
        }
        changed = settings.pop("cluster", {})
        own["redis"] = {**own["redis"], **changed.pop("redis", {})}
        super().__init__(hub, directory, **{"cluster": {**own, **changed}, **settings})

    async def joined(self) -> None:
        """Wait until all workers know that Redis answers."""
        await eventually(self.metrics, "joined", holds=lambda seen: not seen["registry_mirror_cluster_alone"])
        await self.logged("cluster_joined", self.settings["workers"])

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to all processes of it, the supervisor first."""
        for pid in (self.process.pid, *self.workers()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    async def command(self, *words: str) -> tuple[int, bytes, bytes]:
        """Run a command against its admin address: the exit status, and what it has written."""
        command = [sys.executable, "-m", "mirror", *words, "--url", f"http://127.0.0.1:{self.admin_port}"]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=LIMIT, check=False)
        return done.returncode, done.stdout, done.stderr

    async def blob(self, image: str, digest: str) -> Pull:
        """Begin to pull a blob; the head has come."""
        pull = await self.pull(f"/v2/{image}/blobs/{digest}")
        return await pull.head()

    async def whole(self, image: str, digest: str) -> bytes:
        """What a client gets of a blob."""
        return await (await self.blob(image, digest)).rest()


@contextlib.asynccontextmanager
async def cluster(hub, directory: Path, server: RedisServer, count: int = 3, **settings):
    """So many nodes, all of which have joined."""
    async with contextlib.AsyncExitStack() as stack:
        nodes = [Node(hub, directory / f"node-{number}", server, **deepcopy(settings)) for number in range(count)]
        await asyncio.gather(*(stack.enter_async_context(node) for node in nodes))
        await asyncio.gather(*(node.joined() for node in nodes))
        yield nodes
