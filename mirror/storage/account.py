"""The account of a store: the space that its files take, in all and for each registry, in one small file.

It is changed under a lock and read without one: a checksum detects a read in the middle of a change. The numbers of the whole
store come first, as earlier versions write them; what these leave behind of the registries does not match their checksum.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from mirror.errors import StorageError
from mirror.storage.coordination import FileLock, wait_in_thread
from mirror.storage.errors import storage_errors

_NUMBERS = struct.Struct("=QQQQ")
_CHECKSUM = struct.Struct("=I")
_HEAD_BYTES = _NUMBERS.size + _CHECKSUM.size
# Length of the table of the registries, and a checksum of the numbers and the table.
_TABLE_HEAD = struct.Struct("=II")
_MAX_BYTES = 1 << 20
# A process that holds the account for longer hangs; until it ends, new blobs bypass the store.
_LOCK_TIMEOUT_S = 2.0
_READ_TRIES = 5
_BLOCK_BYTES = 4096


def on_disk(size: int) -> int:
    """Return the bytes that a file of `size` bytes takes, in whole blocks."""
    return -(-size // _BLOCK_BYTES) * _BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class Account:
    """The numbers of a store or of one registry, in bytes except for `blobs`.

    Attributes:
        used: reserved now.
        blobs: how many are cached.
        reserved: ever reserved.
        released: ever released.
        registries: the same for each registry that files count for; see `storage.owner`.
    """

    used: int = 0
    blobs: int = 0
    reserved: int = 0
    released: int = 0
    registries: Mapping[str, Account] = field(default_factory=dict)

    def of(self, registry: str | None) -> Account:
        """Return the account of a registry; None stands for the whole store."""
        return self if registry is None else self.registries.get(registry, Account())

    def take(self, size: int, owner: str | None) -> Account:
        """Reserve `size` bytes."""
        return self._change(owner, lambda one: replace(one, used=one.used + size, reserved=one.reserved + size))

    def give(self, size: int, blobs: int, owner: str | None) -> Account:
        """Release `size` bytes of so many cached blobs."""

        def given(one: Account) -> Account:
            used, held = max(0, one.used - size), max(0, one.blobs - blobs)
            return replace(one, used=used, blobs=held, released=one.released + size)

        return self._change(owner, given)

    def add_blob(self, owner: str | None) -> Account:
        """Count one more cached blob."""
        return self._change(owner, lambda one: replace(one, blobs=one.blobs + 1))

    def hand_over(self, size: int, blobs: int, owner: str) -> Account:
        """Count `size` bytes of so many cached blobs that counted for no registry for one."""
        one = self.of(owner)
        changed = replace(one, used=one.used + size, reserved=one.reserved + size, blobs=one.blobs + blobs)
        return replace(self, registries={**self.registries, owner: changed})

    def corrected(self, mark: Account, counted: Account) -> tuple[Account, bool]:
        """Return the account after a count, and whether it is certain; False requires another count.

        The count may or may not include what was reserved or released meanwhile. The account moves just into the resulting
        bounds; a right one lies within them and stays.

        Args:
            mark: the account before the count.
            counted: `used` and `blobs` as they were counted.
        """
        changed, certain = self._corrected(mark, counted)
        registries = {}
        for name in {*self.registries, *counted.registries}:
            registries[name], is_certain = self.of(name)._corrected(mark.of(name), counted.of(name))
            certain = certain and is_certain
        return replace(changed, registries=registries), certain

    def _corrected(self, mark: Account, counted: Account) -> tuple[Account, bool]:
        least = counted.used - max(0, self.released - mark.released)
        most = counted.used + max(0, self.reserved - mark.reserved)
        used = max(0, least, min(self.used, most))
        # The number of blobs is informative: it is corrected by an undisturbed count only.
        blobs = counted.blobs if self == mark else self.blobs
        return replace(self, used=used, blobs=blobs), used == self.used or least == most

    def _change(self, owner: str | None, change: Callable[[Account], Account]) -> Account:
        changed = change(self)
        return changed if owner is None else replace(changed, registries={**self.registries, owner: change(self.of(owner))})


class AccountFile:
    """The file. Each method blocks for a moment.

    Raises:
        StorageError: from each method, if the account is unavailable.
    """

    def __init__(self, path: str) -> None:
        self._path = path

    def read(self) -> Account:
        """Return the account; an empty one if there is none yet, or if it is damaged."""
        with storage_errors("reading the account of the store"):
            try:
                # Read only: a read-only store has figures, too.
                descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return Account()
            try:
                found = (_read(descriptor, strict=left > 0) for left in reversed(range(_READ_TRIES)))
                return next((account for account in found if account is not None), Account())
            finally:
                os.close(descriptor)

    @contextlib.contextmanager
    def change(self) -> Iterator[Change]:
        """Lock the account for a change."""
        with storage_errors("updating the account of the store"), contextlib.closing(FileLock(self._path)) as lock:
            if not wait_in_thread(lock.try_acquire, _LOCK_TIMEOUT_S):
                raise StorageError("another process holds the account of the store, and hangs", "busy")
            yield Change(lock.descriptor)


class Change:
    """A change of the account, under its lock.

    Attributes:
        account: before the change.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.account = _read(descriptor, strict=False) or Account()

    def write(self, account: Account) -> None:
        """Write the account, in one call: a process that is killed leaves the old one or the new one."""
        numbers = _pack(account)
        rows = {name: [one.used, one.blobs, one.reserved, one.released] for name, one in account.registries.items()}
        table = json.dumps(rows).encode()
        head = numbers + _CHECKSUM.pack(zlib.crc32(numbers))
        os.pwrite(self._descriptor, head + _TABLE_HEAD.pack(len(table), zlib.crc32(numbers + table)) + table, 0)


def _pack(account: Account) -> bytes:
    return _NUMBERS.pack(account.used, account.blobs, account.reserved, account.released)


def _read(descriptor: int, *, strict: bool) -> Account | None:
    """Return the account; None if it is damaged or was read in the middle of a change.

    Args:
        strict: None also if only the table of the registries is.
    """
    data = os.pread(descriptor, _MAX_BYTES, 0)
    numbers, checksum = data[: _NUMBERS.size], data[_NUMBERS.size : _HEAD_BYTES]
    # Earlier versions wrote no checksum.
    if len(numbers) != _NUMBERS.size or (checksum and checksum != _CHECKSUM.pack(zlib.crc32(numbers))):
        return None
    registries = _read_registries(numbers, data[_HEAD_BYTES:])
    if registries is None and strict:
        return None
    # Until the files are counted.
    used, blobs, reserved, released = _NUMBERS.unpack(numbers)
    return Account(used, blobs, reserved, released, registries or {})


def _read_registries(numbers: bytes, data: bytes) -> dict[str, Account] | None:
    """Return the accounts of the registries; None if they do not belong to these numbers."""
    if len(data) < _TABLE_HEAD.size:
        return {}
    length, checksum = _TABLE_HEAD.unpack_from(data)
    table = data[_TABLE_HEAD.size : _TABLE_HEAD.size + length]
    if zlib.crc32(numbers + table) != checksum:
        return None
    return {name: Account(*row) for name, row in json.loads(table).items()}
