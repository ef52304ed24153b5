"""Reads small files that operators renew, secrets and user lists, without blocking the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

import aiofiles

T = TypeVar("T")


async def read_secret(path: Path) -> bytes:
    """The content of a file without surrounding white space; may be empty. Raises OSError."""

    async def read() -> bytes:
        async with aiofiles.open(path, "rb") as file:
            return await file.read()

    return (await _shielded(read())).strip()


async def read_text(path: Path) -> str:
    """The content of a text file. Raises OSError, or UnicodeDecodeError if it is not UTF-8."""

    async def read() -> str:
        async with aiofiles.open(path, encoding="utf-8") as file:
            return await file.read()

    return await _shielded(read())


async def _shielded(work: Coroutine[Any, Any, T]) -> T:
    """Wait for a read. If the wait is cancelled, the read continues and closes its file, which a thread may be opening."""
    return await asyncio.shield(asyncio.get_running_loop().create_task(work))
