"""How much of the disk the store may take: space is reserved before bytes are written, by all processes from one account.

The account is a file with a few numbers: the bytes of everything held or in the making, each file rounded up to whole blocks,
how many blobs are held, and how many bytes were ever taken and given back. It is changed under a lock of the kernel, and read
without one: a checksum tells whether it was read in the middle of a change. A crash between a change on disk and the change of
the account leaves it a little wrong; the janitor counts the files again and corrects it.

What lies beside the blobs, the index and the chunk maps, is not in the account, but looked up whenever it matters.
"""

from __future__ import annotations

import contextlib
import enum
import os
import struct
import zlib
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from mirror.core.eviction import Goal, Shortage
from mirror.errors import StorageError
from mirror.storage.coordination import FileLock, wait_in_thread
from mirror.storage.errors import storage_errors
from mirror.storage.layout import Layout

_NUMBERS = struct.Struct("=QQQQ")
_CHECKSUM = struct.Struct("=I")
# Whoever has the account longer than this hangs; a blob that is to be stored meanwhile goes past the store.
_LOCK_TIMEOUT_S = 2.0
_READ_TRIES = 5
_BLOCK = 4096


def on_disk(size: int) -> int:
    """The bytes that a file of `size` bytes takes, counted in whole blocks."""
    return -(-size // _BLOCK) * _BLOCK


async def retry_with_room(store: Callable[[], Awaitable[None]], size: int, make_room: Callable[[int], Awaitable[None]]) -> None:
    """Store `size` bytes; if no space is left, make room and store them once more.

    Raises:
        StorageError: they cannot be stored.
    """
    try:
        await store()
    except StorageError as error:
        if error.reason != "full":
            raise
        await make_room(size)
        await store()


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
    """The numbers of the account, in bytes but for `blobs`.

    Attributes:
        used: taken just now.
        blobs: how many are held.
        taken: ever reserved.
        given: ever released.
    """

    used: int = 0
    blobs: int = 0
    taken: int = 0
    given: int = 0


class SpaceQuota:
    """The account of one store. Every method blocks for a moment, so it belongs in a thread, and
    raises StorageError if the account cannot be kept.

    Attributes:
        max_size: bytes that the store may take; 0 for no limit.
        min_free: bytes that stay free on the file system.
    """

    def __init__(self, layout: Layout, max_size: int, min_free: int) -> None:
        self.max_size = max_size
        self.min_free = min_free
        self._root = layout.root
        self._index = layout.index
        self._path = layout.account

    def used(self) -> int:
        """Bytes that blobs take, held and in the making, reservations included."""
        return self.mark().used

    def figures(self) -> tuple[int, int]:
        """Bytes that the store takes, reservations and what lies beside the blobs included; and blobs that are held."""
        account = self.mark()
        return account.used + self.beside(), account.blobs

    def beside(self) -> int:
        """Bytes that the index and the chunk maps take."""
        maps = sum(_taken(entry) for entry in _entries(self._partials) if entry.name.endswith(".map"))
        return maps + sum(map(_taken, _entries([entry.path for entry in _entries([self._index])])))

    def mark(self) -> Account:
        """The account as it is now, for `correct`."""
        with storage_errors("reading the account of the store"):
            try:
                # Not opened for writing: these can be told of a read-only store, too.
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
        """By how much the bounds are missed.

        Args:
            low: where the low-water mark lies, as a share of the limit; it is as far above the free space that must remain.
        """
        used, free = self.figures()[0], self.free()
        over = Goal(max(0, used - int(self.max_size * low)), max(0, used - self.max_size)) if self.max_size else Goal()
        return Shortage(over, Goal(max(0, int(self.min_free * (2 - low)) - free), max(0, self.min_free - free)))

    def shortage_for(self, size: int) -> Shortage:
        """By how much the bounds would be missed with `size` more bytes."""
        over = max(0, self.figures()[0] + on_disk(size) - self.max_size) if self.max_size else 0
        short = max(0, self.min_free + on_disk(size) - self.free())
        return Shortage(Goal(over, over), Goal(short, short))

    def reserve(self, size: int, begin: Callable[[], None] = lambda: None) -> Fit:
        """Take room for a file of `size` bytes; give it back with `release` when the file goes.

        Args:
            begin: makes the file, before anybody else can reserve or count; if it raises, nothing is taken.
        """
        wanted = on_disk(size)
        with self._account() as descriptor:
            account = _read(descriptor) or Account()
            fit = self._fit(account, wanted)
            if fit is Fit.RESERVED:
                begin()
                _write(descriptor, replace(account, used=account.used + wanted, taken=account.taken + wanted))
            return fit

    def claim(self, size: int, what: str, begin: Callable[[], None] = lambda: None) -> None:
        """Like `reserve`, or raise.

        Raises:
            StorageError: `full` or `too_large`.
        """
        fit = self.reserve(size, begin)
        if fit is Fit.NEVER:
            raise StorageError(f"{what} is larger than storage.max_size", "too_large")
        if fit is Fit.NO_SPACE:
            raise StorageError(f"no room for {what}", "full")

    def release(self, size: int, blobs: int = 0) -> None:
        """A file of `size` bytes has gone, or will not come; it was so many held blobs."""
        # What has gone has gone, whether the account can be kept or not; the next count puts it right.
        with contextlib.suppress(StorageError), self._account() as descriptor:
            account, size = _read(descriptor) or Account(), on_disk(size)
            used, held = max(0, account.used - size), max(0, account.blobs - blobs)
            _write(descriptor, replace(account, used=used, blobs=held, given=account.given + size))

    def hold(self, move: Callable[[], int | None]) -> None:
        """A file whose room was reserved becomes a held blob.

        Args:
            move: gives the file its name, and returns the bytes of the one that had it before, None if there was none.
        """
        with self._account() as descriptor:
            replaced = move()
            account = _read(descriptor) or Account()
            if replaced is None:
                _write(descriptor, replace(account, blobs=account.blobs + 1))
            else:
                size = on_disk(replaced)
                _write(descriptor, replace(account, used=max(0, account.used - size), given=account.given + size))

    def correct(self, mark: Account, counted: int, blobs: int) -> bool:
        """Put the account right after a count; False if it was wrong and others made changes meanwhile: then count again.

        What was taken meanwhile may or may not have been counted, and so what was given back. The account is moved just into
        the bounds that follow; one that was right lies within them and stays as it is.

        Args:
            mark: the account before counting began.
            counted: bytes on disk, as whole blocks.
        """
        with self._account() as descriptor:
            account = _read(descriptor) or Account()
            least = counted - max(0, account.given - mark.given)
            most = counted + max(0, account.taken - mark.taken)
            used = max(0, least, min(account.used, most))
            # The number of blobs is for people: it waits for a count that nobody disturbed.
            held = blobs if account == mark else account.blobs
            _write(descriptor, replace(account, used=used, blobs=held))
            return used == account.used or least == most

    def free(self) -> int:
        """Bytes that the file system has left for us, without those that blobs in the making will still write."""
        with storage_errors("looking at the free space"):
            state = os.statvfs(self._root)
        return state.f_bavail * state.f_frsize - self._promised()

    @property
    def _partials(self) -> list[str]:
        return [f"{self._root}/partial/{algorithm}" for algorithm in ("sha256", "sha512")]

    def _promised(self) -> int:
        return sum(
            max(0, on_disk(state.st_size) - state.st_blocks * 512) for state in map(_state, _entries(self._partials)) if state
        )

    def _fit(self, account: Account, wanted: int) -> Fit:
        if self.max_size and wanted > self.max_size:
            return Fit.NEVER
        if self.max_size and account.used + self.beside() + wanted > self.max_size:
            return Fit.NO_SPACE
        return Fit.RESERVED if self.free() - wanted >= self.min_free else Fit.NO_SPACE

    @contextlib.contextmanager
    def _account(self) -> Iterator[int]:
        with storage_errors("keeping the account of the store"), contextlib.closing(FileLock(self._path)) as lock:
            if not wait_in_thread(lock.try_acquire, _LOCK_TIMEOUT_S):
                raise StorageError("another process holds the account of the store, and hangs", "busy")
            yield lock.descriptor


def _read(descriptor: int) -> Account | None:
    """The account, None if it is damaged, or was read in the middle of a change."""
    data = os.pread(descriptor, _NUMBERS.size + _CHECKSUM.size, 0)
    numbers, checksum = data[: _NUMBERS.size], data[_NUMBERS.size :]
    # Earlier versions have written none.
    if len(numbers) != _NUMBERS.size or (checksum and checksum != _checksum(numbers)):
        return None
    return Account(*_NUMBERS.unpack(numbers))


def _write(descriptor: int, account: Account) -> None:
    numbers = _NUMBERS.pack(account.used, account.blobs, account.taken, account.given)
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
    """Bytes that a file takes on disk."""
    state = _state(entry)
    return 0 if state is None else state.st_blocks * 512
