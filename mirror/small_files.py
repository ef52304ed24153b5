"""Small files that an operator may renew at any time: secrets, and lists of users. Reading them never blocks the event loop."""

from __future__ import annotations

from pathlib import Path

import aiofiles


async def read_secret(path: Path) -> bytes:
    """What a file holds, without white space around it; it may be empty. Raises OSError."""
    async with aiofiles.open(path, "rb") as file:
        return (await file.read()).strip()


async def read_text(path: Path) -> str:
    """What a text file holds. Raises OSError, or UnicodeDecodeError if it is no UTF-8."""
    async with aiofiles.open(path, encoding="utf-8") as file:
        return await file.read()
