"""Tells documents, such as signatures and SBOMs, from archives, which a runtime may unpack whatever their media type says."""

import codecs
from typing import Final

HEAD_BYTES: Final = 4096
"""How many of the first bytes the decision needs: the header of a tar archive, and the superblocks of file systems."""

# Signatures in COSE are the only binary documents: tag 18, and an array of four (RFC 9052, section 4.2).
_COSE: Final = b"\xd2\x84"
# Docker detects compression by the first bytes (moby/go-archive, compression). Those of the others are no text.
_BZIP2: Final = b"BZh"
_BINARY: Final = frozenset(map(chr, range(32))) - frozenset("\t\n\r")
_BLOCK_BYTES: Final = 512
_CHECKSUM: Final = slice(148, 156)


def is_document(head: bytes) -> bool:
    """Whether content that begins with these bytes is text in UTF-8 or a signature in COSE, and no archive.

    Args:
        head: the first HEAD_BYTES; fewer are the whole content.
    """
    head = head[:HEAD_BYTES]
    return (head.startswith(_COSE) or _is_text(head)) and not _is_tar(head[:_BLOCK_BYTES])


def _is_text(head: bytes) -> bool:
    try:
        # The last character may go on behind the head.
        text = codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) < HEAD_BYTES)
    except UnicodeDecodeError:
        return False
    return not head.startswith(_BZIP2) and _BINARY.isdisjoint(text)


def _is_tar(block: bytes) -> bool:
    """Whether a block may be a tar header (POSIX pax, ustar Interchange Format), which can be text, too.

    Readers differ in how they read the checksum, the only mark of old archives. A block that has it anywhere in its place counts.
    """
    if len(block) < _BLOCK_BYTES:
        return False
    field = block[_CHECKSUM]
    blank = block[: _CHECKSUM.start] + b" " * 8 + block[_CHECKSUM.stop :]
    # Some old writers summed signed bytes.
    sums = {sum(blank), sum(byte - 256 if byte > 127 else byte for byte in blank)}
    # Python's reader skips underscores, and takes binary numbers.
    digits = field.replace(b"_", b"")
    return any(b"%o" % total in digits or int.from_bytes(field[1:]) == total for total in sums)
