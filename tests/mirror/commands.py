"""Commands of the mirror, as processes of their own."""

import asyncio
import contextlib
import os

from tests.support.launcher import start_mirror
from tests.support.waiting import LIMIT


async def command(*arguments, directory):
    """Run a command; returns exit status, output and what it complained about."""
    process = await start_mirror(*arguments, directory=directory)
    try:
        async with asyncio.timeout(LIMIT):
            out, complaint = await process.communicate()
    finally:
        process.kill()
    return process.returncode, out.decode(), complaint.decode()


@contextlib.asynccontextmanager
async def begun(mirror, directory, *arguments, terminal=None):
    """A command under way against a mirror; with a terminal, its output is there."""
    url = f"http://127.0.0.1:{mirror.admin_port}"
    process = await start_mirror(*arguments, "--url", url, directory=directory, environment={"TERM": "xterm"}, terminal=terminal)
    try:
        yield process
    finally:
        process.kill()
        await process.wait()


def read_all(terminal):
    """Everything that is written to a terminal until its other end is closed."""
    found = b""
    with contextlib.suppress(OSError):
        while data := os.read(terminal, 1 << 16):
            found += data
    return found.decode()
