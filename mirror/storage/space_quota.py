"""The space of the store: it is reserved before bytes are written, by all processes from one account.

The account is a file with a few numbers: the bytes of all cached and partial blobs, each file rounded up to whole blocks, the
number of cached blobs, and the bytes ever reserved and released. It is changed under a lock and read without one: a checksum
detects a read in the middle of a change. A crash between a change on disk and the change of the account leaves a small error,
which the janitor corrects when it counts the files.

The index and the chunk maps are not in the account; they are measured when needed.
"""

from __future__ import annotations

import contextlib
import enum
import math
import os
import struct
import time
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from mirror.core.algorithms import HEX_DIGITS
from mirror.core.eviction import Goal, Shortage
from mirror.errors import StorageError
from mirror.storage.coordination import FileLock, wait_in_thread
from mirror.storage.errors import storage_errors
from mirror.storage.layout import Layout

_NUMBERS = struct.Struct("=QQQQ")
_CHECKSUM = struct.Struct("=I")
# A process that holds the account for longer hangs; until it ends, new blobs bypass the store.
_LOCK_TIMEOUT_S = 2.0
_READ_TRIES = 5
_BLOCK_BYTES = 4096
# Far from the limit the index and the chunk maps are measured this often: that walks directories, before a first byte.
_OVERHEAD_S = 10.0
_MARGIN_BYTES = 64 << 20


def on_disk(size: int) -> int:
    """Return the bytes that a file of `size` bytes takes, in whole blocks."""
    return -(-size // _BLOCK_BYTES) * _BLOCK_BYTES


async def make_room_after(error: StorageError, size: int, make_room: Callable[[int], Awaitable[None]]) -> None:
    """Make room for `size` bytes, which could not be stored; raise the error if its cause is another than space."""
    if error.reason != "full":
        raise error
    await make_room(size)


class Fit(enum.Enum):
    """The result of a reservation."""

    RESERVED = "reserved"
    """The bytes may be written."""
    NO_SPACE = "not now"
    """There is no space unless something else is evicted."""
    NEVER = "never"
    """It exceeds the limit of the whole store."""


@dataclass(frozen=True, slots=True)
class Account:
    """The numbers of the account, in bytes except for `blobs`.

    Attributes:
        used: reserved now.
        blobs: how many are cached.
        reserved: ever reserved.
        released: ever released.
    """

    used: int = 0
    blobs: int = 0
    reserved: int = 0
    released: int = 0


class SpaceQuota:
    """The account of one store. Each method blocks for a moment, so it belongs in a thread.

    Raises:
        StorageError: from each method, if the account is unavailable.

    Attributes:
        max_size: limit of the store in bytes; 0 for none.
        min_free: bytes to leave free on the file system.
    """

    def __init__(self, layout: Layout, max_size: int, min_free: int) -> None:
        self.max_size = max_size
        self.min_free = min_free
        self._root = layout.root
        self._index = layout.index
        self._path = layout.account
        # The last measurement, and the time until which it will do as long as the limit is far away.
        self._overhead, self._overhead_until = 0, -math.inf

    def used(self) -> int:
        """Return the bytes of cached and partial blobs, reservations included."""
        return self.mark().used

    def figures(self) -> tuple[int, int]:
        """Return the bytes of the store, reservations, index and chunk maps included, and the number of cached blobs."""
        account = self.mark()
        return account.used + self.overhead(), account.blobs

    def overhead(self) -> int:
        """Return the bytes of the index and the chunk maps."""
        maps = sum(_taken(entry) for entry in _entries(self._partials) if entry.name.endswith(".map"))
        self._overhead = maps + sum(map(_taken, _entries([entry.path for entry in _entries([self._index])])))
        self._overhead_until = time.monotonic() + _OVERHEAD_S
        return self._overhead

    def mark(self) -> Account:
        """Return the account, for `correct`."""
        with storage_errors("reading the account of the store"):
            try:
                # Read only: a read-only store has figures, too.
                descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return Account()
            try:
                found = (_read(descriptor) for _ in range(_READ_TRIES))
                return next((account for account in found if account is not None), Account())
            finally:
                os.close(descriptor)

    def fits(self, size: int) -> Fit:
        """Whether `size` more bytes would fit, without reserving them."""
        return self._fit(self.mark(), on_disk(size))

    def shortage(self, low: float) -> Shortage:
        """Return by how much the store misses its bounds.

        Args:
            low: the low-water mark as a share of the limit; it lies as far above `min_free`.
        """
        used, free = self.figures()[0], self.free()
        over = Goal(max(0, used - int(self.max_size * low)), max(0, used - self.max_size)) if self.max_size else Goal()
        return Shortage(over, Goal(max(0, int(self.min_free * (2 - low)) - free), max(0, self.min_free - free)))

    def shortage_for(self, size: int) -> Shortage:
        """Return by how much the store would miss its bounds with `size` more bytes."""
        over = max(0, self.figures()[0] + on_disk(size) - self.max_size) if self.max_size else 0
        short = max(0, self.min_free + on_disk(size) - self.free())
        return Shortage(Goal(over, over), Goal(short, short))

    def reserve(self, size: int, begin: Callable[[], None] = lambda: None) -> Fit:
        """Reserve space for a file of `size` bytes; `release` it when the file is removed.

        Args:
            begin: creates the file, before another process can reserve or count; if it raises, nothing is reserved.
        """
        needed = on_disk(size)
        with self._account() as descriptor:
            account = _read(descriptor) or Account()
            fit = self._fit(account, needed)
            if fit is Fit.RESERVED:
                begin()
                _write(descriptor, replace(account, used=account.used + needed, reserved=account.reserved + needed))
            return fit

    def claim(self, size: int, what: str, begin: Callable[[], None] = lambda: None) -> None:
        """Reserve space like `reserve`, or raise.

        Raises:
            StorageError: `full` or `too_large`.
        """
        fit = self.reserve(size, begin)
        if fit is Fit.NEVER:
            raise StorageError(f"{what} is larger than storage.max_size", "too_large")
        if fit is Fit.NO_SPACE:
            raise StorageError(f"no room for {what}", "full")

    def release(self, size: int, blobs: int = 0) -> None:
        """Release the space of a file that was removed, or was not written; `blobs` of them were cached blobs."""
        # The file is removed even if the account is unavailable; the next count corrects it.
        with contextlib.suppress(StorageError), self._account() as descriptor:
            account, size = _read(descriptor) or Account(), on_disk(size)
            used, held = max(0, account.used - size), max(0, account.blobs - blobs)
            _write(descriptor, replace(account, used=used, blobs=held, released=account.released + size))

    def commit(self, move: Callable[[], int | None]) -> None:
        """Turn a file whose space was reserved into a cached blob.

        Args:
            move: renames the file, and returns the bytes of the file that it replaced, or None.
        """
        with self._account() as descriptor:
            replaced = move()
            account = _read(descriptor) or Account()
            if replaced is None:
                _write(descriptor, replace(account, blobs=account.blobs + 1))
            else:
                size = on_disk(replaced)
                _write(descriptor, replace(account, used=max(0, account.used - size), released=account.released + size))

    def correct(self, mark: Account, counted: int, blobs: int) -> bool:
        """Correct the account after a count; False if it was wrong and changed meanwhile, which requires another count.

        The count may or may not include what was reserved or released meanwhile. The account moves just into the resulting
        bounds; a right one lies within them and stays.

        Args:
            mark: the account before the count.
            counted: bytes on disk, in whole blocks.
        """
        with self._account() as descriptor:
            account = _read(descriptor) or Account()
            least = counted - max(0, account.released - mark.released)
            most = counted + max(0, account.reserved - mark.reserved)
            used = max(0, least, min(account.used, most))
            # The number of blobs is informative: it is corrected by an undisturbed count only.
            held = blobs if account == mark else account.blobs
            _write(descriptor, replace(account, used=used, blobs=held))
            return used == account.used or least == most

    def free(self) -> int:
        """Return the free bytes of the file system, less those that partial blobs have yet to write."""
        return self.disk_free() - self._unwritten()

    def disk_free(self) -> int:
        """Return the free bytes of the file system."""
        with storage_errors("looking at the free space"):
            state = os.statvfs(self._root)
        return state.f_bavail * state.f_frsize

    @property
    def _partials(self) -> list[str]:
        return [f"{self._root}/partial/{algorithm}" for algorithm in HEX_DIGITS]

    def _unwritten(self) -> int:
        return sum(
            max(0, on_disk(state.st_size) - state.st_blocks * 512) for state in map(_state, _entries(self._partials)) if state
        )

    def _fit(self, account: Account, needed: int) -> Fit:
        if self.max_size and needed > self.max_size:
            return Fit.NEVER
        if self.max_size and not self._is_far(account.used + needed) and account.used + self.overhead() + needed > self.max_size:
            return Fit.NO_SPACE
        free = self.disk_free() - needed
        # What partial blobs have yet to write is part of what is reserved.
        if free - account.used >= self.min_free or free - self._unwritten() >= self.min_free:
            return Fit.RESERVED
        return Fit.NO_SPACE

    def _is_far(self, size: int) -> bool:
        """Whether `size` bytes are within the limit even if the index has doubled since it was measured, some seconds ago."""
        return time.monotonic() < self._overhead_until and size + 2 * self._overhead + _MARGIN_BYTES <= self.max_size

    @contextlib.contextmanager
    def _account(self) -> Iterator[int]:
        with storage_errors("updating the account of the store"), contextlib.closing(FileLock(self._path)) as lock:
            if not wait_in_thread(lock.try_acquire, _LOCK_TIMEOUT_S):
                raise StorageError("another process holds the account of the store, and hangs", "busy")
            yield lock.descriptor


def _read(descriptor: int) -> Account | None:
    """Return the account; None if it is damaged or was read in the middle of a change."""
    data = os.pread(descriptor, _NUMBERS.size + _CHECKSUM.size, 0)
    numbers, checksum = data[: _NUMBERS.size], data[_NUMBERS.size :]
    # Earlier versions wrote no checksum.
    if len(numbers) != _NUMBERS.size or (checksum and checksum != _checksum(numbers)):
        return None
    return Account(*_NUMBERS.unpack(numbers))


def _write(descriptor: int, account: Account) -> None:
    numbers = _NUMBERS.pack(account.used, account.blobs, account.reserved, account.released)
    os.pwrite(descriptor, numbers + _checksum(numbers), 0)


def _checksum(numbers: bytes) -> bytes:
    return _CHECKSUM.pack(zlib.crc32(numbers))


def _entries(directories: Iterable[str]) -> Iterator[os.DirEntry[str]]:
    for directory in directories:
        with contextlib.suppress(OSError), os.scandir(directory) as entries:
            yield from entries


def _state(entry: os.DirEntry[str]) -> os.stat_result | None:
    try:
        return entry.stat(follow_symlinks=False)
    except OSError:
        return None


def _taken(entry: os.DirEntry[str]) -> int:
    """Return the bytes of a file on disk."""
    state = _state(entry)
    return 0 if state is None else state.st_blocks * 512
