"""Starts `python -m mirror` as a process of its own, without the wait for an interpreter that imports everything anew."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
_STREAM_LIMIT = 1 << 20


class Launcher:
    """A fork server, started with the first order and ended with `close`, or with this process."""

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._server = subprocess.Popen(
                [sys.executable, "-m", "tests.support.forkserver", str(theirs.fileno())],
                cwd=ROOT, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def order(self, order: Mapping[str, object], descriptors: list[int]) -> None:
        """Have a process started; the first of the descriptors gets its id, and its exit status at the end, a line each."""
        socket.send_fds(self._orders, [json.dumps(order).encode()], descriptors)

    def close(self) -> None:
        """End the server; what it has started is left alone."""
        self._orders.close()
        self._server.wait(10)


@functools.cache
def launcher() -> Launcher:
    """The launcher of this test process."""
    return Launcher()


def close_launcher() -> None:
    """End the launcher of this test process, if there is one."""
    if launcher.cache_info().currsize:
        launcher().close()
        launcher.cache_clear()


class MirrorProcess:
    """A `python -m mirror` that has been started, with what the tests use of `asyncio.subprocess.Process`.

    Attributes:
        pid: its process id.
        returncode: its exit status, negative for a signal; None while it runs.
        stdout, stderr: what it writes; None for a stream that was given.
    """

    def __init__(self, pid: int, news: asyncio.StreamReader, streams: list[asyncio.StreamReader | None]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdout, self.stderr = streams
        self._ending = asyncio.ensure_future(self._ended(news))

    async def _ended(self, news: asyncio.StreamReader) -> int:
        # To the end, which closes the pipe.
        self.returncode = int(await news.read())
        return self.returncode

    async def wait(self) -> int:
        """Wait for its end; the exit status."""
        return await asyncio.shield(self._ending)

    async def communicate(self) -> tuple[bytes, bytes]:
        """Everything that it writes until its end."""
        out, complaint = [await stream.read() if stream else b"" for stream in (self.stdout, self.stderr)]
        await self.wait()
        return out, complaint

    def send_signal(self, number: int) -> None:
        """Send a signal, if it still runs."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)


async def start_mirror(
    *arguments: str,
    directory: Path,
    environment: Mapping[str, str] | None = None,
    terminal: int | None = None,
    silent: bool = False,
    unhurried: bool = True,
    network: str | None = None,
) -> MirrorProcess:
    """Start `python -m mirror` with these arguments.

    Args:
        directory: its working directory.
        environment: added to this process's own without what configures a mirror.
        terminal: a descriptor for all three standard streams; without it, standard input is empty and the others can be read.
        silent: have standard output go nowhere.
        unhurried: move its short time limits far away (tests.support.unhurried).
        network: the path of the network namespace to run in; None for that of the tests.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MIRROR")}
    environment = {**inherited, "PYTHONPATH": str(ROOT), **(environment or {})}
    order: dict[str, object] = {"arguments": arguments, "directory": str(directory), "environment": environment}
    order |= {"unhurried": unhurried, "network": network}
    with contextlib.ExitStack() as stack:
        news, theirs = stack.enter_context(_pipe())
        if terminal is not None:
            launcher().order(order, [theirs, terminal, terminal, terminal])
            return await _started(news, [None, None])
        nothing = os.open(os.devnull, os.O_RDWR)
        stack.callback(os.close, nothing)
        error, its_error = stack.enter_context(_pipe())
        if silent:
            launcher().order(order, [theirs, nothing, nothing, its_error])
            return await _started(news, [None, await _reader(error)])
        out, its_out = stack.enter_context(_pipe())
        launcher().order(order, [theirs, nothing, its_out, its_error])
        return await _started(news, [await _reader(out), await _reader(error)])


@contextlib.contextmanager
def _pipe() -> Iterator[tuple[int, int]]:
    """Both ends of a pipe; the one that is written to belongs to another process after the block, and is closed here."""
    ours, theirs = os.pipe()
    try:
        yield ours, theirs
    finally:
        os.close(theirs)


async def _started(news: int, streams: list[asyncio.StreamReader | None]) -> MirrorProcess:
    reader = await _reader(news)
    return MirrorProcess(int(await reader.readline()), reader, streams)


async def _reader(descriptor: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit=_STREAM_LIMIT)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0))
    return reader
