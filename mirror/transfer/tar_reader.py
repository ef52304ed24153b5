"""Reads a tar as its bytes arrive, and refuses everything that an archive of images does not contain.

POSIX.1-1988 (ustar), pax(1) extended headers, and GNU tar's long names. Nothing is ever unpacked: a name is only a name. Hard
links, devices, sparse files, names that lead out of the archive, and the same name twice are refused, because programs disagree
about what they mean.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from mirror.transfer.errors import InvalidBundle
from mirror.transfer.layout import BLOCK_BYTES, MAX_MEMBERS

MAX_NAME: Final = 255
"""Characters of a name, and of a link's target. The longest name in a bundle has 141."""

_MAX_RECORDS_BYTES: Final = 64 << 10
_LENGTH_DIGITS: Final = len(str(_MAX_RECORDS_BYTES))
_MAX_SIZE: Final = 1 << 60
# Programs fill the last record of an archive with zeros: 10 KiB by default, as many blocks as `tar --blocking-factor` says.
_MAX_PADDING_BYTES: Final = 1 << 20
_ZEROS: Final = bytes(BLOCK_BYTES)
_OCTAL: Final = re.compile(rb"[0-7]+")
_DECIMAL: Final = re.compile(r"[0-9]{1,20}", re.ASCII)
_REFUSED: Final = {
    b"1": "a hard link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a pipe",
    b"7": "a contiguous file",
    b"S": "a sparse file",
}


class Kind(Enum):
    """The kind of a member."""

    FILE = "file"
    DIRECTORY = "directory"
    LINK = "symbolic link"


@dataclass(frozen=True, slots=True)
class Member:
    """A member of an archive.

    Attributes:
        name: without `./` before it and `/` after it.
        size: bytes of its content, which follows; 0 unless it is a file.
        target: of a symbolic link, as it stands in the archive.
    """

    name: str
    kind: Kind
    size: int = 0
    target: str = ""


class TarReader:
    """Splits the bytes of one archive into members and their content.

    Memory is bounded by `MAX_MEMBERS` names of `MAX_NAME` characters.
    """

    def __init__(self) -> None:
        self._block = bytearray()
        # Of the content that arrives, and of the zeros after it that fill its last block.
        self._left = self._padding = 0
        # What the content is kept for: a long name or pax records. None for the content of a member.
        self._extension: Callable[[bytes], None] | None = None
        self._content = bytearray()
        # What the extensions before a header say of its member.
        self._records: dict[str, str] = {}
        self._kinds: dict[str, Kind] = {}
        self._headers = 0
        # Zeros of the end mark, and after it.
        self._end_bytes = 0

    def feed(self, data: bytes) -> Iterator[Member | memoryview]:
        """Yield what the next bytes hold: each member, and after a file as many bytes as its size says, in pieces.

        A piece is valid until the next one.

        Raises:
            InvalidBundle: the archive is malformed, or has a member that is refused.
        """
        view = memoryview(data)
        while view:
            if self._left:
                piece, view = view[: self._left], view[self._left :]
                self._left -= len(piece)
                if self._extension is None:
                    yield piece
                else:
                    self._extend(self._extension, piece)
            elif self._padding:
                skipped = min(self._padding, len(view))
                self._padding -= skipped
                view = view[skipped:]
            else:
                wanted = BLOCK_BYTES - len(self._block)
                self._block += view[:wanted]
                view = view[wanted:]
                if len(self._block) == BLOCK_BYTES:
                    member = self._read_header(bytes(self._block))
                    self._block.clear()
                    if member is not None:
                        yield member

    def close(self) -> None:
        """Check that the archive has ended.

        Raises:
            InvalidBundle: it is cut.
        """
        if not self._headers and not self._block and not self._end_bytes:
            raise InvalidBundle("it is empty")
        if self._left or self._padding or self._block or self._end_bytes < 2 * BLOCK_BYTES:
            raise InvalidBundle("it ends before the end mark of the archive: it was cut")

    def _read_header(self, block: bytes) -> Member | None:
        if block == _ZEROS:
            self._read_end()
            return None
        if self._end_bytes:
            raise InvalidBundle("data follows the end mark of the archive")
        self._headers += 1
        if self._headers > MAX_MEMBERS:
            raise InvalidBundle(f"it has more than {MAX_MEMBERS} members")
        _check_sum(block)
        kind = block[156:157]
        if kind in b"xgLK" and kind:
            self._begin_extension(kind, _number(block[124:136]))
            return None
        member = self._member(block, kind)
        self._records.clear()
        self._note(member)
        self._left, self._padding = member.size, -member.size % BLOCK_BYTES
        return member

    def _read_end(self) -> None:
        if self._records:
            raise InvalidBundle("the end mark of the archive follows an extended header")
        self._end_bytes += BLOCK_BYTES
        if self._end_bytes > _MAX_PADDING_BYTES:
            raise InvalidBundle(f"more than {_MAX_PADDING_BYTES} bytes follow the end mark of the archive")

    def _member(self, block: bytes, kind: bytes) -> Member:
        prefix = block[345:500] if block[257:263] == b"ustar\0" else b""
        parts = [part for part in (_text(prefix), _text(block[:100])) if part]
        name = _checked_name(self._records.get("path", "/".join(parts)), is_directory=kind == b"5")
        size = self._size(block, name)
        if kind in (b"0", b"\0"):
            return Member(name, Kind.FILE, size)
        if kind not in (b"2", b"5"):
            raise InvalidBundle(f"{_REFUSED.get(kind, 'of an unknown type')}, which no bundle contains", name)
        if size:
            raise InvalidBundle("it has no content, but a size", name)
        if kind == b"5":
            return Member(name, Kind.DIRECTORY)
        return Member(name, Kind.LINK, target=_bounded(self._records.get("linkpath", _text(block[157:257])), name))

    def _size(self, block: bytes, name: str) -> int:
        stated = self._records.get("size")
        if stated is not None and _DECIMAL.fullmatch(stated) is None:
            raise InvalidBundle(f"its size is no number: {stated[:40]!r}", name)
        size = _number(block[124:136], name) if stated is None else int(stated)
        if size > _MAX_SIZE:
            raise InvalidBundle(f"its size is impossible: {size}", name)
        return size

    def _note(self, member: Member) -> None:
        """Refuse a name that the archive has already. Tools may list a directory twice."""
        known = self._kinds.get(member.name)
        if known is not None and (known is not member.kind or known is not Kind.DIRECTORY):
            raise InvalidBundle("the archive has this name twice", member.name)
        self._kinds[member.name] = member.kind

    # ---- extensions

    def _begin_extension(self, kind: bytes, size: int) -> None:
        is_name = kind in b"LK"
        if not 0 < size <= (MAX_NAME + 1 if is_name else _MAX_RECORDS_BYTES):
            raise InvalidBundle(f"a header has {'a name' if is_name else 'records'} of {size} bytes")
        reads = {b"x": self._read_pax, b"g": self._read_global, b"L": self._read_long_name, b"K": self._read_long_link}
        self._extension, self._left, self._padding = reads[kind], size, -size % BLOCK_BYTES

    def _extend(self, extension: Callable[[bytes], None], piece: memoryview) -> None:
        self._content += piece
        if not self._left:
            content, self._extension = bytes(self._content), None
            self._content.clear()
            extension(content)

    def _read_long_name(self, content: bytes) -> None:
        self._record("path", _text(content))

    def _read_long_link(self, content: bytes) -> None:
        self._record("linkpath", _text(content))

    def _read_pax(self, content: bytes) -> None:
        for key, value in _pax_records(content):
            if key.startswith("GNU.sparse"):
                raise InvalidBundle("it has a sparse file, which no bundle contains")
            if key in ("path", "linkpath", "size"):
                self._record(key, value)

    def _read_global(self, content: bytes) -> None:
        for key, _ in _pax_records(content):
            if key in ("path", "linkpath", "size") or key.startswith("GNU.sparse"):
                raise InvalidBundle(f"a global header sets {key[:40]!r} of all members")

    def _record(self, key: str, value: str) -> None:
        if key in self._records:
            raise InvalidBundle(f"two headers set the {key} of one member")
        self._records[key] = value


def _check_sum(block: bytes) -> None:
    stated = block[148:156].strip(b"\0 ")
    if _OCTAL.fullmatch(stated) is None or sum(block) - sum(block[148:156]) + 8 * 0x20 != int(stated, 8):
        raise InvalidBundle("it is no tar, or is damaged: the checksum of a header is wrong")


def _number(field: bytes, name: str | None = None) -> int:
    """Read a number in octal digits, or in GNU tar's binary form."""
    if field[0] == 0xFF:
        raise InvalidBundle("its size is negative", name)
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.strip(b"\0 ")
    if digits and _OCTAL.fullmatch(digits) is None:
        raise InvalidBundle(f"a header has no number where one belongs: {digits[:20]!r}", name)
    return int(digits or b"0", 8)


def _text(field: bytes) -> str:
    try:
        return field.partition(b"\0")[0].decode()
    except UnicodeDecodeError as error:
        raise InvalidBundle(f"a name is not UTF-8: {field[:40]!r}") from error


def _pax_records(content: bytes) -> Iterator[tuple[str, str]]:
    """Yield the records `LENGTH KEY=VALUE\\n` (pax(1), Extended Header)."""
    start = 0
    while start < len(content):
        length = content[start : start + _LENGTH_DIGITS + 1].partition(b" ")[0]
        end = start + int(length) if length.isdigit() else start
        record = content[start + len(length) + 1 : end]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or not record.endswith(b"\n") or end > len(content):
            raise InvalidBundle("an extended header is malformed")
        start = end
        try:
            yield key.decode(), value.decode()
        except UnicodeDecodeError as error:
            raise InvalidBundle(f"a record is not UTF-8: {key[:40]!r}") from error


def _bounded(text: str, name: str) -> str:
    if len(text) > MAX_NAME or not text.isprintable():
        raise InvalidBundle(f"a name has more than {MAX_NAME} characters, or some that cannot be printed", name)
    return text


def _checked_name(text: str, *, is_directory: bool) -> str:
    """Return a name without `./` before it; refuse one that is absolute, leads out, or can be written in two ways."""
    _bounded(text, text)
    if text.startswith("/"):
        raise InvalidBundle("its name is absolute", text)
    name = text.rstrip("/") if is_directory else text
    while name.startswith("./"):
        name = name[2:]
    if is_directory and name in ("", "."):
        return "."
    parts = name.split("/")
    if ".." in parts:
        raise InvalidBundle("its name leads out of the archive", text)
    if "" in parts or "." in parts:
        raise InvalidBundle("its name is empty, or has an empty part", text)
    return name
