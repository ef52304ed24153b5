"""Scans all cached blobs: how many there are, how much space they take, and which of them to evict first.

A program of its own, which imports next to nothing and starts in a moment. A walk over a million files keeps the interpreter
busy: in a thread it would compete with requests, and leave its memory behind. A process of low priority does neither.

    scan_process.py BLOBS_DIRECTORY MOST except|only REGISTRY    with the hexadecimal names of pinned blobs on stdin, one a line

prints `HEADER`, a table of the registries that the blobs count for, and then at most MOST blobs in the order of their eviction:
each a `RECORD`, followed by the bytes of its digest. It looks at the blobs of REGISTRY only, or at all if that is "" or `*`. `*`
fills the table: a line for each registry, with its name ("" for blobs that count for none), bytes and blobs between tabs.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import sys
from collections.abc import Iterator

if __name__ == "__main__":
    # Isolated from the environment, the interpreter does not know where the package lies.
    sys.path.append(os.path.abspath(f"{os.path.dirname(__file__)}/../.."))

from mirror.core.algorithms import HEX_DIGITS
from mirror.core.eviction_order import eviction_key
from mirror.storage.owner import owner_of

HEADER = struct.Struct(">QQQQ")
"""Bytes of all blobs, each file rounded up to whole blocks; bytes of the pinned ones; blobs; bytes of the table."""
RECORD = struct.Struct(">dQB")
"""Last use (seconds since the epoch), bytes, length of the digest in bytes."""
BLOCK_BYTES = 4096
# Packed like this, keys compare as bytes, which is several times as fast.
_KEY = struct.Struct(">3d")

_HEX = frozenset("0123456789abcdef")


class _Scan:
    """One walk over all blobs.

    Attributes:
        taken: bytes on disk of the blobs seen so far.
        pinned: bytes on disk of the pinned ones.
        blobs: how many were seen so far.
        registries: bytes on disk and number of the blobs of each registry, "" for none.

    Args:
        registry: look at its blobs only; `*` at all, each with its registry; "" at all.
    """

    def __init__(self, root: str, pins: frozenset[str], registry: str) -> None:
        self._root = root
        self._pins = pins
        self._registry = registry
        self.registries: dict[str, list[int]] = {}
        self._parent = os.getppid()
        self.taken = self.pinned = self.blobs = 0

    def walk(self, first: _First, *, only_pinned: bool) -> None:
        """Offer the blobs that are not pinned, or those that are."""
        for directory, digits in _shards(self._root):
            # The parent has died: the answer has no reader.
            if os.getppid() != self._parent:
                sys.exit(1)
            for name, size, used in _files(directory, digits):
                is_pinned, on_disk = name in self._pins, -(-size // BLOCK_BYTES) * BLOCK_BYTES
                if self._registry and not self._counts(owner_of(f"{directory}/{name}") or "", on_disk):
                    continue
                self.taken, self.blobs = self.taken + on_disk, self.blobs + 1
                self.pinned += on_disk if is_pinned else 0
                if is_pinned == only_pinned:
                    key = _KEY.pack(*eviction_key(max(0.0, used), size, pinned=is_pinned))
                    first.offer(key + RECORD.pack(used, size, digits // 2) + bytes.fromhex(name))

    def _counts(self, owner: str, on_disk: int) -> bool:
        """Count a blob of a registry, if its blobs are looked at."""
        if self._registry not in ("*", owner):
            return False
        row = self.registries.setdefault(owner, [0, 0])
        row[0] += on_disk
        row[1] += 1
        return True


class _First:
    """The smallest of the offered records, `most` of them, in memory for a quarter more."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._room = most + most // 4 + 1
        self._records: list[bytes] = []
        self._limit: bytes | None = None

    def offer(self, record: bytes) -> None:
        """Take one more record into account."""
        if not self._most or (self._limit is not None and record > self._limit):
            return
        self._records.append(record)
        if len(self._records) >= self._room:
            self._limit = self.found()[-1]

    def found(self) -> list[bytes]:
        """Return the smallest records so far, in order."""
        self._records.sort()
        del self._records[self._most :]
        return self._records


def scan(root: str, most: int, pins: frozenset[str], registry: str = "", *, only_pinned: bool) -> Iterator[bytes]:
    """Yield what the program prints."""
    blobs, first = _Scan(root, pins, registry), _First(most)
    blobs.walk(first, only_pinned=only_pinned)
    table = "".join(f"{name}\t{taken}\t{count}\n" for name, (taken, count) in blobs.registries.items()).encode()
    yield HEADER.pack(blobs.taken, blobs.pinned, blobs.blobs, len(table)) + table
    for record in first.found():
        yield record[_KEY.size :]


def _shards(root: str) -> Iterator[tuple[str, int]]:
    for algorithm, digits in HEX_DIGITS.items():
        with contextlib.suppress(OSError):
            for shard in sorted(os.listdir(f"{root}/{algorithm}")):
                yield f"{root}/{algorithm}/{shard}", digits


def _files(directory: str, digits: int) -> Iterator[tuple[str, int, float]]:
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if len(entry.name) == digits and not set(entry.name) - _HEX:
                with contextlib.suppress(OSError):
                    state = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(state.st_mode):
                        yield entry.name, state.st_size, state.st_mtime


if __name__ == "__main__":
    # A low priority is not essential: a sandbox may refuse it, as systemd's @resources does.
    with contextlib.suppress(OSError):
        os.nice(10)
    blobs_directory, most_candidates, mode, only_registry = sys.argv[1:]
    pinned = frozenset(sys.stdin.read().split())
    sys.stdout.buffer.writelines(scan(blobs_directory, int(most_candidates), pinned, only_registry, only_pinned=mode == "only"))
