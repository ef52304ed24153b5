"""The space of the store: it is reserved before bytes are written, by all processes from one account.

The account has the bytes of all cached and partial blobs, each file rounded up to whole blocks, the number of cached blobs, and
the bytes ever reserved and released, in all and for each registry. A crash between a change on disk and the change of the account
leaves a small error, which the janitor corrects when it counts the files.

The index and the chunk maps are not in the account; they are measured when needed.
"""

from __future__ import annotations

import contextlib
import enum
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from typing import TypeAlias

from mirror.core.algorithms import HEX_DIGITS
from mirror.core.eviction import Goal, Shortage
from mirror.errors import StorageError
from mirror.storage.account import Account, AccountFile, on_disk
from mirror.storage.errors import storage_errors
from mirror.storage.layout import Layout
from mirror.storage.owner import keeps_owners, owner_of, set_owner

# Far from the limit the index and the chunk maps are measured this often: that walks directories, before a first byte.
_OVERHEAD_S = 10.0
_MARGIN_BYTES = 64 << 20


MakeRoom: TypeAlias = Callable[[int, str | None], Awaitable[None]]
"""Tries to make room for so many bytes that count for a registry, within a bounded time."""


async def make_room_after(error: StorageError, size: int, owner: str | None, make_room: MakeRoom) -> None:
    """Make room for `size` bytes, which could not be stored; raise the error if its cause is another than space."""
    if error.reason != "full":
        raise error
    await make_room(size, owner)


class Fit(enum.Enum):
    """The result of a reservation."""

    RESERVED = "reserved"
    """The bytes may be written."""
    NO_SPACE = "not now"
    """There is no space unless something else is evicted."""
    NEVER = "never"
    """It exceeds the limit of the whole store."""


class SpaceQuota:
    """The account of one store. Each method blocks for a moment, so it belongs in a thread.

    Raises:
        StorageError: from each method, if the account is unavailable.

    Attributes:
        max_size: limit of the store in bytes; 0 for none.
        min_free: bytes to leave free on the file system.
        limits: bytes that the blobs of each mirrored registry may take; 0 for no limit of its own.
        keeps_owners: whether the file system keeps what the limits of registries need; see `storage.owner`.
    """

    def __init__(self, layout: Layout, max_size: int, min_free: int) -> None:
        self.max_size = max_size
        self.min_free = min_free
        self.limits: Mapping[str, int] = {}
        self.keeps_owners = keeps_owners(layout.root)
        self._root = layout.root
        self._index = layout.index
        self._imports = layout.imports
        self._file = AccountFile(layout.account)
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
        return self._file.read()

    def limit_of(self, owner: str | None) -> int:
        """Return the limit of a registry in bytes; 0 if it has none of its own, or if its files cannot be told apart."""
        owner = self._kept(owner)
        return 0 if owner is None else self.limits.get(owner, 0)

    def fits(self, size: int, owner: str | None = None) -> Fit:
        """Whether `size` more bytes would fit, without reserving them.

        Args:
            owner: the registry that they would count for.
        """
        return self._fit(self.mark(), on_disk(size), owner)

    def shortage(self, low: float, registry: str | None = None) -> Shortage:
        """Return by how much the store, or one registry in it, misses its bounds.

        Args:
            low: the low-water mark as a share of the limit; it lies as far above `min_free`.
        """
        if registry is not None:
            return self._shortage_of(registry, 0, low)
        used, free = self.figures()[0], self.free()
        over = Goal(max(0, used - int(self.max_size * low)), max(0, used - self.max_size)) if self.max_size else Goal()
        return Shortage(over, Goal(max(0, int(self.min_free * (2 - low)) - free), max(0, self.min_free - free)))

    def shortage_for(self, size: int, registry: str | None = None) -> Shortage:
        """Return by how much the store, or one registry in it, would miss its bounds with `size` more bytes."""
        if registry is not None:
            return self._shortage_of(registry, on_disk(size), 1.0)
        over = max(0, self.figures()[0] + on_disk(size) - self.max_size) if self.max_size else 0
        short = max(0, self.min_free + on_disk(size) - self.free())
        return Shortage(Goal(over, over), Goal(short, short))

    def reserve(self, size: int, owner: str | None = None, begin: Callable[[], None] = lambda: None) -> Fit:
        """Reserve space for a file of `size` bytes; `release` it when the file is removed.

        Args:
            owner: the registry that it counts for.
            begin: creates the file, before another process can reserve or count; if it raises, nothing is reserved.
        """
        needed, owner = on_disk(size), self._kept(owner)
        with self._file.change() as change:
            fit = self._fit(change.account, needed, owner)
            if fit is Fit.RESERVED:
                begin()
                change.write(change.account.take(needed, owner))
            return fit

    def claim(self, size: int, what: str, owner: str | None = None, begin: Callable[[], None] = lambda: None) -> None:
        """Reserve space like `reserve`, or raise.

        Raises:
            StorageError: `full` or `too_large`.
        """
        fit = self.reserve(size, owner, begin)
        if fit is Fit.NEVER:
            limit = self.limit_of(owner)
            key = f"registries.{owner}.max_size" if limit and on_disk(size) > limit else "storage.max_size"
            raise StorageError(f"{what} is larger than {key}", "too_large")
        if fit is Fit.NO_SPACE:
            raise StorageError(f"no room for {what}", "full")

    def release(self, size: int, blobs: int = 0, owner: str | None = None) -> None:
        """Release the space of a file that was removed, or was not written; `blobs` of them were cached blobs."""
        # The file is removed even if the account is unavailable; the next count corrects it.
        with contextlib.suppress(StorageError), self._file.change() as change:
            change.write(change.account.give(on_disk(size), blobs, self._kept(owner)))

    def commit(self, move: Callable[[], tuple[int, str | None] | None], owner: str | None = None) -> None:
        """Turn a file whose space was reserved into a cached blob.

        Args:
            move: renames the file, and returns the bytes and the owner of the file that it replaced, or None.
            owner: the registry that the file counts for.
        """
        with self._file.change() as change:
            replaced = move()
            account = change.account.add_blob(self._kept(owner))
            change.write(account if replaced is None else account.give(on_disk(replaced[0]), 1, replaced[1]))

    def assign(self, path: str, size: int, blobs: int, owner: str) -> None:
        """Count a file that counted for no registry for one; not if another process has done so.

        Args:
            blobs: 1 for the file of a cached blob, 0 for one that is not cached yet.
        """
        with self._file.change() as change, storage_errors(f"assigning {path}"):
            if owner_of(path) is None:
                set_owner(path, owner)
                change.write(change.account.hand_over(on_disk(size), blobs, owner))

    def correct(self, mark: Account, counted: Account) -> bool:
        """Correct the account after a count; False if it was wrong and changed meanwhile, which requires another count.

        Args:
            mark: the account before the count.
            counted: bytes on disk, in whole blocks, and blobs; of the registries, too.
        """
        with self._file.change() as change:
            corrected, certain = change.account.corrected(mark, counted)
            change.write(corrected)
            return certain

    def free(self) -> int:
        """Return the free bytes of the file system, less those that partial blobs and imports have yet to write."""
        return self.disk_free() - self._unwritten()

    def disk_free(self) -> int:
        """Return the free bytes of the file system."""
        with storage_errors("looking at the free space"):
            state = os.statvfs(self._root)
        return state.f_bavail * state.f_frsize

    def _kept(self, owner: str | None) -> str | None:
        return owner if self.keeps_owners else None

    @property
    def _partials(self) -> list[str]:
        return [f"{self._root}/partial/{algorithm}" for algorithm in HEX_DIGITS]

    def _unwritten(self) -> int:
        return sum(
            max(0, on_disk(state.st_size) - state.st_blocks * 512)
            for state in map(_state, _entries([*self._partials, self._imports]))
            if state
        )

    def _shortage_of(self, registry: str, more: int, low: float) -> Shortage:
        limit, used = self.limit_of(registry), self.mark().of(registry).used + more
        return Shortage(Goal(max(0, used - int(limit * low)), max(0, used - limit))) if limit else Shortage()

    def _fit(self, account: Account, needed: int, owner: str | None) -> Fit:
        limit = self.limit_of(owner)
        if (self.max_size and needed > self.max_size) or (limit and needed > limit):
            return Fit.NEVER
        if limit and account.of(owner).used + needed > limit:
            return Fit.NO_SPACE
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
