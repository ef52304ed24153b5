"""What tests do to files, and what they look for in them."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def flip(path: Path) -> None:
    """Change one bit in the middle of a file, and neither its size nor its time."""
    state = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def opened_under(directory: object) -> list[str]:
    """Targets of all descriptors of this process that lead into a directory, also to files without a name."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith(f"{directory}/"):
                found.append(target)
    return sorted(found)
