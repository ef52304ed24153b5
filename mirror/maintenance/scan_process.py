"""A look at every held blob: how many there are, how much room they take, and which were used least recently.

It is a program of its own, and uses nothing but the standard library so that it starts in a moment. A walk over a million
files is a long stretch of Python: in a thread it would fight with the requests for the interpreter, and would leave behind
the memory that it took. As another process, one that gives way, it does neither.

    survey.py BLOBS_DIRECTORY MOST except|only    with names of pinned blobs in hex on stdin, one a line

prints `HEADER`, and then at most MOST blobs in the order in which they should go, each as a `RECORD` followed by the bytes
of its digest.
"""

from __future__ import annotations

import contextlib
import os
import stat
import struct
import sys
from collections.abc import Iterator

HEADER = struct.Struct(">QQQ")
"""Bytes taken, each file rounded up to whole blocks; those of them that pinned blobs take; blobs."""
RECORD = struct.Struct(">dQB")
"""When it was used last (seconds since the epoch), bytes, length of the digest in bytes."""
BLOCK = 4096

_ALGORITHMS = {"sha256": 64, "sha512": 128}
_HEX = frozenset("0123456789abcdef")


def main(root: str, most: int, only: bool, pinned: frozenset[str]) -> None:
    """Look, and print what was found."""
    parent = os.getppid()
    taken = taken_by_pinned = blobs = 0
    oldest = _Oldest(most)
    for directory, digits in _shards(root):
        # Whoever asked has died: nobody will read the answer.
        if os.getppid() != parent:
            return
        for name, size, used in _files(directory, digits):
            quota, is_pinned = -(-size // BLOCK) * BLOCK, name in pinned
            taken, blobs = taken + quota, blobs + 1
            taken_by_pinned += quota if is_pinned else 0
            if most and is_pinned == only:
                # As bytes these compare like what they stand for. Smaller ones first among equals: a manifest before its layers.
                oldest.offer(RECORD.pack(used, size, digits // 2) + bytes.fromhex(name))
    with open(sys.stdout.fileno(), "wb", closefd=False) as out:
        out.write(HEADER.pack(taken, taken_by_pinned, blobs))
        out.writelines(oldest.found())


class _Oldest:
    """The least of what it is offered, `most` of them, in memory for twice as many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._records: list[bytes] = []
        self._bar: bytes | None = None

    def offer(self, record: bytes) -> None:
        """Take one more into account."""
        if self._bar is not None and record > self._bar:
            return
        self._records.append(record)
        if len(self._records) >= 2 * self._most:
            self._records = self.found()
            self._bar = self._records[-1]

    def found(self) -> list[bytes]:
        """The least so far, in order."""
        return sorted(self._records)[: self._most]


def _shards(root: str) -> Iterator[tuple[str, int]]:
    for algorithm, digits in _ALGORITHMS.items():
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
    # Politeness is worth no work: a sandbox may refuse it, as systemd's @resources does.
    with contextlib.suppress(OSError):
        os.nice(10)
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "only", frozenset(sys.stdin.read().split()))
