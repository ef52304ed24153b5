"""Decompresses a bundle as its bytes arrive: gzip (RFC 1952), zstd (RFC 8878), or neither."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from mirror.transfer.errors import InvalidBundle

if TYPE_CHECKING:
    from backports.zstd import ZstdDecompressor

MAX_RATIO: Final = 200
"""Bytes that one compressed byte may become, once FREE_BYTES are exceeded. Zeros in gzip reach 1032."""

FREE_BYTES: Final = 256 << 20
"""Bytes that may come out of any number of compressed ones."""

_PIECE_BYTES: Final = 1 << 20
# A decompressor copies what follows the end of a member or frame. Smaller slices keep many of them linear.
_SLICE_BYTES: Final = 16 << 10
# The window that every decoder of zstd has to support (RFC 8878, section 3.1.1.1.2). It is held in memory.
_WINDOW_LOG: Final = 23
_OTHERS: Final = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip", b"\x04\x22\x4d\x18": "lz4"}
_MAGIC_BYTES: Final = 6


class Decompressor:
    """Decompresses one file. The first bytes of the file say how it is compressed."""

    def __init__(self) -> None:
        self._head: bytes | None = b""
        self._codec: _Gzip | _Zstd | None = None
        self._taken = self._given = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Yield what the next bytes hold, in pieces of at most a MiB if it is compressed.

        Raises:
            InvalidBundle: it is compressed in another way, damaged, or grows beyond measure.
        """
        self._taken += len(data)
        if self._head is not None:
            data = self._head + data
            if len(data) < _MAGIC_BYTES:
                self._head = data
                return
            self._head, self._codec = None, _codec_of(data)
        if self._codec is None:
            yield data
            return
        for start in range(0, len(data), _SLICE_BYTES):
            for piece in self._codec.decode(data[start : start + _SLICE_BYTES]):
                self._given += len(piece)
                if self._given > max(FREE_BYTES, MAX_RATIO * self._taken):
                    raise InvalidBundle(
                        f"it grows to more than {MAX_RATIO} times its compressed size; if that is right, decompress it"
                    )
                yield piece

    def close(self) -> None:
        """Check that the file has ended.

        Raises:
            InvalidBundle: it is cut, or too short to be anything.
        """
        if self._head:
            raise InvalidBundle(f"it has only {len(self._head)} bytes")
        if self._codec is not None and not self._codec.is_whole:
            raise InvalidBundle(f"it was cut: the {self._codec.name} data ends too early")


class _Gzip:
    """Members of gzip, one after the other."""

    name = "gzip"

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(zlib.MAX_WBITS | 16)

    @property
    def is_whole(self) -> bool:
        return self._stream.eof

    def decode(self, data: bytes) -> Iterator[bytes]:
        piece = b""
        while data or (len(piece) == _PIECE_BYTES and not self._stream.eof):
            if self._stream.eof:
                self._stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
            try:
                piece = self._stream.decompress(data, _PIECE_BYTES)
            except zlib.error as error:
                raise InvalidBundle("its gzip data is damaged") from error
            data = self._stream.unconsumed_tail or self._stream.unused_data
            yield piece


class _Zstd:
    """Frames of zstd, one after the other."""

    name = "zstd"

    def __init__(self) -> None:
        self._stream = _zstd_stream()

    @property
    def is_whole(self) -> bool:
        return self._stream.eof

    def decode(self, data: bytes) -> Iterator[bytes]:
        while data or not (self._stream.eof or self._stream.needs_input):
            if self._stream.eof:
                self._stream = _zstd_stream()
            try:
                piece = self._stream.decompress(data, _PIECE_BYTES)
            # A ZstdError: its module is imported only for a bundle of zstd.
            except Exception as error:
                problem = f"its zstd data is damaged, or needs a window of more than {1 << _WINDOW_LOG >> 20} MiB"
                raise InvalidBundle(problem) from error
            data = self._stream.unused_data if self._stream.eof else b""
            yield piece


def _zstd_stream() -> ZstdDecompressor:
    if sys.version_info >= (3, 14):
        from compression import zstd  # noqa: PLC0415 - as below
    else:
        from backports import zstd  # noqa: PLC0415 - only a bundle of zstd needs it
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})


def _codec_of(head: bytes) -> _Gzip | _Zstd | None:
    if head.startswith(b"\x1f\x8b"):
        return _Gzip()
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return _Zstd()
    other = next((name for magic, name in _OTHERS.items() if head.startswith(magic)), None)
    if other is not None:
        raise InvalidBundle(f"it is compressed by {other}: tar, plain or in gzip or zstd, is taken")
    return None
