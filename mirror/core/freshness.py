"""When a cached tag is served, and when it is checked again."""

from dataclasses import dataclass
from typing import TypeAlias

from mirror.core.digest import Digest


@dataclass(frozen=True, slots=True)
class TagRecord:
    """What a tag was found to name. The times are seconds since the epoch.

    `checked`: upstream confirmed it; `changed`: it began to name this digest; `pulled`: a client asked last.
    `due`: it is to be checked at its next pull, however young it is.
    """

    digest: Digest
    media_type: str
    size: int
    checked: float
    changed: float
    pulled: float
    due: bool = False


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
    return Fresh(record) if 0 <= now - record.checked < ttl and not record.due else Due(record)
