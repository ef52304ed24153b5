"""Which client has lately been given which whole blob: the workers of a mirror share what they know, in bounded memory.

Who fetches the same blob twice in a row may have found the first copy damaged, or be a bench, or one of many hosts behind one
address. That cannot be told apart, so a repeat is a reason to look at the file, though not often.
"""

from __future__ import annotations

import mmap
import struct
import time
from collections.abc import Callable

from mirror.core.digest import Digest

# Clients that found a digest wrong come back at once, or after the first pauses of a kubelet, which double from ten seconds.
_REPEATED_WITHIN_S = 60.0
_CHECKED_EVERY_S = 3600.0
_SLOTS = 8192
# Who was given what (a hash), and when; and after those, when the blobs that share a slot were checked last.
_SERVED = struct.Struct("=qd")
_CHECKED = struct.Struct("=d")
_CHECKS = _SLOTS * _SERVED.size


class Repeats:
    """A table that processes share if it is made before they are forked: so their hashes are the same, too.

    Nothing is locked, and entries that share a slot replace each other: then a repeat goes unnoticed, or a check waits.

    Args:
        clock: seconds, the same for all processes of the machine.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._memory = mmap.mmap(-1, _CHECKS + _SLOTS * _CHECKED.size)

    def served(self, digest: Digest, client: str) -> None:
        """Note that a client was given the whole of a held blob. Costs about a microsecond."""
        key = hash((digest, client))
        _SERVED.pack_into(self._memory, key % _SLOTS * _SERVED.size, key, self._clock())

    def is_repeated(self, digest: Digest, client: str) -> bool:
        """Whether a client that asks for a blob was given it a moment ago. Costs about a microsecond."""
        key = hash((digest, client))
        found, when = _SERVED.unpack_from(self._memory, key % _SLOTS * _SERVED.size)
        return bool(found == key and self._clock() - when < _REPEATED_WITHIN_S)

    def claim_check(self, digest: Digest) -> bool:
        """Whether a blob is to be checked now; True for one caller, and then not for an hour."""
        at, now = _CHECKS + hash(digest) % _SLOTS * _CHECKED.size, self._clock()
        (when,) = _CHECKED.unpack_from(self._memory, at)
        if when and now - when < _CHECKED_EVERY_S:
            return False
        _CHECKED.pack_into(self._memory, at, now)
        return True
