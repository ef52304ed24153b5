"""The parts of a tar that is written: headers, padding and its end (POSIX.1-2001, pax).

Everything but the name and the size of a member is constant, so the same members make the same tar.
"""

from __future__ import annotations

import tarfile
from typing import Final

from mirror.transfer.layout import BLOCK_BYTES

END: Final = bytes(2 * BLOCK_BYTES)
"""The two empty blocks that end a tar."""


def header(name: str, size: int) -> bytes:
    """Return the header of a regular file; with a pax header before it if the name or the size does not fit into one."""
    member = tarfile.TarInfo(name)
    member.size = size
    return member.tobuf(tarfile.PAX_FORMAT)


def padding(size: int) -> bytes:
    """Return the zeros after a member of `size` bytes."""
    return bytes(-size % BLOCK_BYTES)


def member_bytes(name: str, size: int) -> int:
    """Return the bytes that a member takes with its header and padding."""
    return len(header(name, size)) + size + len(padding(size))
