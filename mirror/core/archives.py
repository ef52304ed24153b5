"""Tells archives, which a runtime may unpack, from text."""

from typing import Final

HEAD_BYTES: Final = 512
"""How many of the first bytes the decision needs: a block of a tar archive."""

# Docker detects these whatever the media type of a layer says (moby/go-archive, compression). The second of zstd is that of its
# skippable frames.
_COMPRESSED: Final = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
_SKIPPABLE: Final = b"\x2a\x4d\x18"
_CHECKSUM: Final = slice(148, 156)


def is_archive(head: bytes) -> bool:
    """Whether content that begins with these bytes is compressed, or a tar archive (POSIX pax, ustar Interchange Format)."""
    return head.startswith(_COMPRESSED) or (head[:1] >= b"\x50" and head[1:4] == _SKIPPABLE) or _is_tar(head[:HEAD_BYTES])


def _is_tar(block: bytes) -> bool:
    """Whether a block has the checksum of a tar header; old archives have no other mark."""
    if len(block) < HEAD_BYTES:
        return False
    try:
        stated = int(block[_CHECKSUM].replace(b"\0", b" ").strip() or b"x", 8)
    except ValueError:
        return False
    blank = block[: _CHECKSUM.start] + b" " * 8 + block[_CHECKSUM.stop :]
    # Some old writers summed signed bytes.
    return stated in (sum(blank), sum(byte - 256 if byte > 127 else byte for byte in blank))
