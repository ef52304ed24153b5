"""An OCI image layout in a folder, as the bytes of a tar."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from mirror.transfer import tar_writer
from mirror.transfer.errors import InvalidBundle
from mirror.transfer.layout import INDEX_FILE, LAYOUT_FILE, blob_digest

_PIECE_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class LayoutFolder:
    """The files of a layout; other files in the folder are left alone.

    Attributes:
        files: the names and sizes, the small documents last.
    """

    path: str
    files: tuple[tuple[str, int], ...]

    @classmethod
    def open(cls, path: str) -> LayoutFolder:
        """List a folder.

        Raises:
            InvalidBundle: it is no layout.
            OSError: it cannot be read.
        """
        names = [name for name in _names(path) if blob_digest(name) is not None]
        documents = [name for name in (LAYOUT_FILE, INDEX_FILE) if os.path.isfile(f"{path}/{name}")]
        if INDEX_FILE not in documents:
            raise InvalidBundle(f"the folder has no {INDEX_FILE}: it is no OCI image layout")
        return cls(path, tuple((name, _size(f"{path}/{name}")) for name in (*sorted(names), *documents)))

    @property
    def size(self) -> int:
        """Bytes of the tar."""
        return sum(tar_writer.member_bytes(name, size) for name, size in self.files) + len(tar_writer.END)

    def pieces(self) -> Iterator[bytes]:
        """Yield the tar.

        Raises:
            InvalidBundle: a file has changed since.
            OSError: it cannot be read.
        """
        for name, size in self.files:
            yield tar_writer.header(name, size)
            with open(f"{self.path}/{name}", "rb") as file:
                left = size
                while left and (piece := file.read(min(left, _PIECE_BYTES))):
                    left -= len(piece)
                    yield piece
            if left:
                raise InvalidBundle("it has become shorter while it was read", name)
            yield tar_writer.padding(size)
        yield tar_writer.END


def _names(path: str) -> Iterator[str]:
    for algorithm in _listed(f"{path}/blobs"):
        for encoded in _listed(f"{path}/blobs/{algorithm}"):
            yield f"blobs/{algorithm}/{encoded}"


def _listed(path: str) -> list[str]:
    return sorted(os.listdir(path)) if os.path.isdir(path) else []


def _size(path: str) -> int:
    state = os.lstat(path)
    if not stat.S_ISREG(state.st_mode):
        raise InvalidBundle("it is no plain file", path)
    return state.st_size
