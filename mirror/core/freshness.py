"""When a cached tag is fresh, and when it is revalidated."""

from dataclasses import dataclass, replace
from typing import TypeAlias

from mirror.core.digest import Digest


@dataclass(frozen=True, slots=True)
class TagRecord:
    """What a tag names. Times are seconds since the epoch.

    Attributes:
        checked: when the last check that confirmed it began.
        changed: when it began to name this digest.
        pulled: the last request of a client.
        due: checks that began before this time do not count; 0 without such a time.
        denied: a check after `checked` was denied.
    """

    digest: Digest
    media_type: str
    size: int
    checked: float
    changed: float
    pulled: float
    due: float = 0.0
    denied: bool = False


@dataclass(frozen=True, slots=True)
class Fresh:
    """Serve the record without a request to upstream."""

    record: TagRecord


@dataclass(frozen=True, slots=True)
class Due:
    """Revalidate the record."""

    record: TagRecord


@dataclass(frozen=True, slots=True)
class Unknown:
    """There is no record."""


Decision: TypeAlias = Fresh | Due | Unknown


def decide(record: TagRecord | None, now: float, ttl: float) -> Decision:
    """Decide about a tag at `now`; a check is valid for `ttl` seconds.

    A check in the future was made before the clock was set back, at an unknown time: it is due.
    """
    if record is None:
        return Unknown()
    holds = 0 <= now - record.checked < ttl and record.due <= record.checked and not record.denied
    return Fresh(record) if holds else Due(record)


def is_superseded(asked: float, noted: float, now: float) -> bool:
    """Whether the result of a check that began at `asked` is older than the recorded one, whose check began at `noted`.

    A record from the future was made before the clock was set back, and does not count.
    """
    return asked < noted <= now


def after_check(known: TagRecord | None, found: TagRecord, now: float) -> TagRecord | None:
    """The record to keep after a check that began at `found.checked`; None if the known one comes from a later check."""
    if known is None:
        return found
    if is_superseded(found.checked, known.checked, now):
        return None
    return replace(
        found,
        changed=known.changed if known.digest == found.digest else found.changed,
        pulled=max(known.pulled, found.pulled),
        due=known.due if is_superseded(found.checked, known.due, now) else 0.0,
    )
