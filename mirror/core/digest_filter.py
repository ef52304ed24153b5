"""A set of digests in a fixed amount of memory, which may say yes about one that was never added."""

from __future__ import annotations

from typing import Final

from mirror.core.digest import Digest

_BITS: Final = 1 << 25
# A digest is as good as random: each of these positions is a piece of it.
_POSITIONS: Final = 5
_POSITION_DIGITS: Final = 8


class DigestFilter:
    """A Bloom filter of 4 MiB: of a million digests one in 3,000 others seems to be in it."""

    def __init__(self) -> None:
        self._bits = bytearray(_BITS // 8)

    def add(self, digest: Digest) -> bool:
        """Add a digest; False if it seems to be in it already."""
        is_new = False
        for position in self._positions(digest):
            byte, mask = position >> 3, 1 << (position & 7)
            is_new = is_new or not self._bits[byte] & mask
            self._bits[byte] |= mask
        return is_new

    def __contains__(self, digest: Digest) -> bool:
        return all(self._bits[position >> 3] & 1 << (position & 7) for position in self._positions(digest))

    @staticmethod
    def _positions(digest: Digest) -> list[int]:
        pieces = range(0, _POSITIONS * _POSITION_DIGITS, _POSITION_DIGITS)
        return [int(digest.encoded[start : start + _POSITION_DIGITS], 16) % _BITS for start in pieces]
