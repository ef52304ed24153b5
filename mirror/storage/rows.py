"""Keys of the index's tables, and the deletion of rows that are stale.

A key is a sequence of fields, separated by `|`: most are `kind|registry/path|reference`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, Literal, TypeVar

from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.names import Reference, Repository, parse_reference

T = TypeVar("T")

# A digest can be requested as either, and may exist as one and not as the other.
Kind = Literal["manifest", "blob"]

MALFORMED: Final = (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError, InvalidInput)
"""What reading a value raises if an earlier version or a damaged disk has written something else."""

# A thread reads so many rows in some milliseconds.
_ROWS_PER_PAUSE: Final = 250


def parse_repository(name: str) -> Repository | None:
    """Return the repository `registry/path`, or None if there can be none of that name."""
    registry, _, path = name.partition("/")
    try:
        return Repository.parse(registry, path)
    except InvalidInput:
        return None


def parse_digest(text: str) -> Digest | None:
    """Return a digest, or None if the text is none."""
    try:
        return Digest.parse(text)
    except InvalidInput:
        return None


def parse_key(key: str) -> tuple[Repository, Reference] | None:
    """Return what a key `kind|registry/path|reference` names, or None if it is malformed."""
    _, _, rest = key.partition("|")
    name, _, text = rest.partition("|")
    repository = parse_repository(name)
    try:
        return None if repository is None else (repository, parse_reference(text))
    except InvalidInput:
        return None


def paused(rows: Iterable[T], pause: Callable[[], bool]) -> Iterator[T]:
    """Yield rows, and call `pause` after every few hundred of them; the first True ends the walk."""
    for number, row in enumerate(rows, 1):
        if not number % _ROWS_PER_PAUSE and pause():
            return
        yield row


def delete_if(
    change: Callable[[Callable[[], bool]], bool | None], is_stale: Callable[[], bool], delete: Callable[[], None]
) -> bool:
    """Delete a row that is stale; False if it is not, or if its table is unavailable.

    Args:
        change: runs work while no process writes to the table. The decisive test runs there: content that has arrived
            meanwhile is recorded after it.
    """

    def work() -> bool:
        if not is_stale():
            return False
        delete()
        return True

    return is_stale() and change(work) is True
