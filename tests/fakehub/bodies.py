"""Bodies that are read piece by piece, so that a large one needs no memory."""

import random
from hashlib import sha256
from typing import Protocol

# A prime just above 1 MiB: bytes written at an offset wrong by a whole chunk then differ.
BLOCK = 1_048_583
ENDLESS = 1 << 62


class Body(Protocol):
    """`size` bytes that can be read at any place; `start` and `stop` are offsets in bytes."""

    size: int

    def read(self, start: int, stop: int) -> bytes: ...


class Bytes:
    """A body held in memory."""

    def __init__(self, data: bytes = b"") -> None:
        self.data = data
        self.size = len(data)

    def read(self, start: int, stop: int) -> bytes:
        return self.data[start:stop]


class Repeated:
    """`size` bytes made of one block over and over."""

    def __init__(self, block: bytes, size: int) -> None:
        self.block = block
        self.size = size

    def read(self, start: int, stop: int) -> bytes:
        pieces = []
        while start < stop:
            at = start % len(self.block)
            piece = self.block[at : at + stop - start]
            pieces.append(piece)
            start += len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def synthetic(size: int, seed: int) -> Repeated:
    """Pseudo-random bytes, the same ones for the same seed."""
    return Repeated(random.Random(seed).randbytes(BLOCK), size)


def zeros(size: int) -> Repeated:
    return Repeated(bytes(64 * 1024), size)


class Part:
    """The bytes from `start` up to `stop` of another body."""

    def __init__(self, whole: Body, start: int, stop: int) -> None:
        self.whole = whole
        self.start = start
        self.size = stop - start

    def read(self, start: int, stop: int) -> bytes:
        return self.whole.read(self.start + start, self.start + stop)


class Flipped:
    """Another body with the byte at one offset inverted."""

    def __init__(self, right: Body, at: int) -> None:
        self.right = right
        self.at = at
        self.size = right.size

    def read(self, start: int, stop: int) -> bytes:
        data = self.right.read(start, stop)
        if start <= self.at < stop:
            place = self.at - start
            data = data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]
        return data


def digest_of(body: bytes | Body) -> str:
    """The sha256 digest of a body, computed by streaming it."""
    if isinstance(body, bytes):
        return "sha256:" + sha256(body).hexdigest()
    total = sha256()
    for start in range(0, body.size, BLOCK):
        total.update(body.read(start, min(start + BLOCK, body.size)))
    return "sha256:" + total.hexdigest()
