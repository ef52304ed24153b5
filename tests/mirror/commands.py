"""Commands of the mirror, as processes of their own."""

import asyncio

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
