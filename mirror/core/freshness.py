"""When a cached tag is served, and when it is checked again."""

from dataclasses import dataclass, replace
from typing import TypeAlias

from mirror.core.digest import Digest


@dataclass(frozen=True, slots=True)
class TagRecord:
    """What a tag was found to name. The times are seconds since the epoch.

    `checked`: upstream was asked, and confirmed it; `changed`: it began to name this digest; `pulled`: a client asked last.
    `due`: since then a check that began earlier does not count, however young it is; 0 if nobody wants that.
    `denied`: upstream was asked after `checked`, and did not grant it.
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
    """Serve the record without asking upstream."""

    record: TagRecord


@dataclass(frozen=True, slots=True)
class Due:
    """Ask upstream whether the record still holds."""

    record: TagRecord


@dataclass(frozen=True, slots=True)
class Unknown:
    """Nothing is recorded: only upstream can tell."""


Decision: TypeAlias = Fresh | Due | Unknown


def decide(record: TagRecord | None, now: float, ttl: float) -> Decision:
    """What to do about a tag at `now`, if a check holds for `ttl` seconds.

    A check in the future was made before the clock was set back, and nothing says how long ago: it is due.
    """
    if record is None:
        return Unknown()
    holds = 0 <= now - record.checked < ttl and record.due <= record.checked and not record.denied
    return Fresh(record) if holds else Due(record)


def is_superseded(asked: float, noted: float, now: float) -> bool:
    """Whether the answer to a question asked of upstream at `asked` is older than what is noted, which was asked for at `noted`.

    A note from the future was made before the clock was set back, and says nothing.
    """
    return asked < noted <= now


def after_check(known: TagRecord | None, found: TagRecord, now: float) -> TagRecord | None:
    """The record to keep after a check that began at `found.checked`; None if what is known comes from one that began later."""
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
