"""Identifies the boot of the machine: bytes written before a power loss may never have reached the disk."""

from __future__ import annotations

import functools
from pathlib import Path

_PATH = Path("/proc/sys/kernel/random/boot_id")


@functools.cache
def boot_id() -> bytes:
    """Return 16 bytes that change with each boot (random(4)); zeros if they cannot be read."""
    try:
        return bytes.fromhex(_PATH.read_text().strip().replace("-", "")).ljust(16, b"\0")[:16]
    except (OSError, ValueError):
        return bytes(16)
