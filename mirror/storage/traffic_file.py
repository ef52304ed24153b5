"""The file with the counts of a mirror for each minute of the last week: a ring of rows of one size.

A row has the counts since the start of the mirror, so any of its processes may write the row of a minute, once or again, and a
row that is missing costs only the minute in which something happened. The file never grows beyond half a MiB.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import Final

from mirror.core.traffic import KEPT_MINUTES, Totals, Traffic

# Minute, run, pulls, hits, bytes served, bytes fetched; then the checksum of these.
_VALUES: Final = struct.Struct("<6Q")
_ROW: Final = struct.Struct("<6QI")
_MAX_VALUE: Final = 2**64 - 1


class TrafficFile:
    """Reads and writes the rows. Each method blocks for one disk operation.

    Args:
        path: of the file, which the first write creates.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def write(self, totals: Totals) -> None:
        """Write the row of a minute, in place of the one of a week ago. Raises OSError."""
        traffic = totals.traffic
        values = (totals.minute, totals.run, traffic.pulls, traffic.hits, traffic.served, traffic.fetched)
        packed = _VALUES.pack(*(min(value, _MAX_VALUE) for value in values))
        row = packed + zlib.crc32(packed).to_bytes(4, "little")
        # Opening a pipe would block.
        descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            os.pwrite(descriptor, row, totals.minute % KEPT_MINUTES * _ROW.size)
        finally:
            os.close(descriptor)

    def read(self) -> list[Totals]:
        """Return the rows that are whole, in no order; none if there is no file or it cannot be read."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return []
        try:
            data = os.pread(descriptor, KEPT_MINUTES * _ROW.size, 0)
        except OSError:
            return []
        finally:
            os.close(descriptor)
        return [
            Totals(minute, run, Traffic(pulls, hits, served, fetched))
            for position in range(0, len(data) - _ROW.size + 1, _ROW.size)
            for minute, run, pulls, hits, served, fetched, check in (_ROW.unpack_from(data, position),)
            # A hole of the sparse file is not a row, whatever its checksum.
            if minute and check == zlib.crc32(data[position : position + _VALUES.size])
        ]
