"""Reads small files that operators renew, secrets and user lists, without blocking the event loop."""

from __future__ import annotations

from pathlib import Path

import aiofiles


async def read_secret(path: Path) -> bytes:
    """The content of a file without surrounding white space; may be empty. Raises OSError."""
    async with aiofiles.open(path, "rb") as file:
        return (await file.read()).strip()


async def read_text(path: Path) -> str:
    """The content of a text file. Raises OSError, or UnicodeDecodeError if it is not UTF-8."""
    async with aiofiles.open(path, encoding="utf-8") as file:
        return await file.read()
