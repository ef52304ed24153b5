"""Digests: the names of content (OCI image-spec, descriptor.md, Digests)."""

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirror.core.algorithms import HEX_DIGITS
from mirror.core.errors import InvalidDigest

if TYPE_CHECKING:
    from hashlib import _Hash

# Upper-case hex is invalid for both; lowering it would give one blob two names.
_GRAMMAR = re.compile("|".join(f"{name}:[a-f0-9]{{{digits}}}" for name, digits in HEX_DIGITS.items()), re.ASCII)


@dataclass(frozen=True, slots=True)
class Digest:
    """An algorithm and the hash in lower-case hex. Make one with `parse` or `of`: only those check it."""

    algorithm: str
    encoded: str

    @classmethod
    def parse(cls, text: str) -> "Digest":
        """Read `algorithm:hex`, sha256 or sha512. Raises InvalidDigest."""
        if _GRAMMAR.fullmatch(text) is None:
            raise InvalidDigest(text, "expected sha256: or sha512: and 64 or 128 lower-case hex digits")
        algorithm, _, encoded = text.partition(":")
        return cls(algorithm, encoded)

    @classmethod
    def of(cls, data: bytes, algorithm: str = "sha256") -> "Digest":
        """The digest of these bytes. Raises InvalidDigest on an algorithm other than sha256 and sha512."""
        return cls(algorithm, _new(algorithm, data).hexdigest())

    def hasher(self) -> "_Hash":
        """A fresh hash object of this digest's algorithm, to be fed the content."""
        return _new(self.algorithm)

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.encoded}"

    def __hash__(self) -> int:
        # The hex alone distinguishes digests, and Python caches the hash of a string.
        return hash(self.encoded)


def _new(algorithm: str, data: bytes = b"") -> "_Hash":
    if algorithm not in HEX_DIGITS:
        raise InvalidDigest(algorithm, f"the algorithm is none of {', '.join(HEX_DIGITS)}")
    return hashlib.new(algorithm, data)
