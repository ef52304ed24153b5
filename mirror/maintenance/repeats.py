"""Which client has lately received which whole blob: the workers of a mirror share it, in bounded memory.

A client that fetches the same blob twice in a row may have found the first copy damaged, or be a benchmark, or one of many hosts
behind one address. These cannot be told apart, so a repeat causes a check of the file, but not often.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Callable

from mirror.core.digest import Digest

# A client that found a digest wrong retries at once, or after the first pauses of a kubelet, which double from ten seconds.
_REPEATED_WITHIN_S = 60.0
_CHECK_INTERVAL_S = 3600.0
_SLOTS = 8192
# A hash of client and digest with its time for each slot; after all of them, the time of the last check for each slot.
_SERVED = struct.Struct("=qd")
_CHECKED = struct.Struct("=d")
_CHECKS = _SLOTS * _SERVED.size


class Repeats:
    """A table that processes share if it is created before they are forked, which also gives them the same hashes.

    It has no lock, and entries of one slot replace each other: then a repeat is missed, or a check is delayed.

    Args:
        clock: seconds, the same for all processes of the machine.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._memory = mmap.mmap(-1, _CHECKS + _SLOTS * _CHECKED.size)

    def served(self, digest: Digest, client: str) -> None:
        """Note that a client has received a whole cached blob. Costs about a microsecond."""
        key = hash((digest, client))
        _SERVED.pack_into(self._memory, key % _SLOTS * _SERVED.size, key, self.clock())

    def is_repeated(self, digest: Digest, client: str) -> bool:
        """Whether a client that requests a blob has received it a moment ago. Costs about a microsecond."""
        key = hash((digest, client))
        found, when = _SERVED.unpack_from(self._memory, key % _SLOTS * _SERVED.size)
        return bool(found == key and self.clock() - when < _REPEATED_WITHIN_S)

    def claim_check(self, digest: Digest) -> bool:
        """Whether to check a blob now; True for one caller, and then for none during an hour."""
        at, now = _CHECKS + hash(digest) % _SLOTS * _CHECKED.size, self.clock()
        (when,) = _CHECKED.unpack_from(self._memory, at)
        if when and now - when < _CHECK_INTERVAL_S:
            return False
        _CHECKED.pack_into(self._memory, at, now)
        return True
