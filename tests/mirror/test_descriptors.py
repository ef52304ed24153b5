"""A mirror without descriptors: it does not spin, says so in one line, and serves on as soon as it can."""

import asyncio
import contextlib
import os
import resource
import socket

import pytest

from tests.support.processes import Served
from tests.support.waiting import LIMIT
from tests.support.wire import ask, request


def descriptors(pid):
    return len(os.listdir(f"/proc/{pid}/fd"))


def seconds_of_cpu(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def silent(port, count):
    """So many connections that ask nothing."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=LIMIT))
        yield


@contextlib.contextmanager
def no_more_than(pid, count):
    """The process may open so many more files."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors(pid) + count, before[1]))
    yield
    with contextlib.suppress(ProcessLookupError):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


async def answered(port, target, status=200):
    """Wait until a request is answered so."""
    async with asyncio.timeout(LIMIT):
        while True:
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                if (await ask(port, request(target))).status == status:
                    return
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("address", ["registry", "admin"])
async def test_silent_connections(hub, tmp_path, address):
    """Hundreds of silent connections at one address leave both of them in service: idle ones give way."""
    async with Served(hub, tmp_path) as mirror:
        pid = mirror.process.pid
        port = mirror.port if address == "registry" else mirror.admin_port
        with no_more_than(pid, 30), silent(port, 300):
            await mirror.logged("accept_paused")
            before = seconds_of_cpu(pid)
            await answered(mirror.port, "/v2/")
            await answered(mirror.admin_port, "/healthz")
            assert seconds_of_cpu(pid) - before < 1.0
        mirror.signal()
        assert await mirror.ended() == 0
        assert "Traceback" not in mirror.log
        assert mirror.log.count("accept_paused") < 20


async def test_stop_without_descriptors(hub, tmp_path):
    """A stop with a full table, and a backlog, is as quiet and quick as any."""
    async with Served(hub, tmp_path) as mirror:
        pid = mirror.process.pid
        # What is done once after the start has been done.
        for event in ("store_counted", "leftovers_cleared"):
            await mirror.logged(event)
        with no_more_than(pid, 0), silent(mirror.port, 300), silent(mirror.admin_port, 300):
            await mirror.logged("accept_paused")
            mirror.signal()
            assert await mirror.ended() == 0
    assert "Traceback" not in mirror.log
    assert len(mirror.log) < 10_000
