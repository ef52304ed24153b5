"""Whether a tag that has moved upstream is followed, or keeps what it names here.

This is the one decision about moves of tags; pulls of clients and the resync ask it alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, TypeAlias

from mirror.core.digest import Digest
from mirror.core.units import format_utc

MAX_COOLDOWN_S: Final = 60 * 86400.0
"""The longest cool-down; a first sight is remembered for longer."""


class Reason(StrEnum):
    """Why a tag keeps what it names; each is the key of the configuration that demands it."""

    COOLDOWN = "cooldown"
    FREEZE = "freeze"
    UNTRUSTED = "trust"


@dataclass(frozen=True, slots=True)
class HoldRule:
    """How moves of a tag are held back.

    Attributes:
        cooldown: seconds for which a digest has to be known here before a tag follows to it; 0 for none.
        refuses_new: a tag that was never seen here waits for the cool-down, too, and is refused until then.
        freeze: the tag is not followed until an operator releases the move.
    """

    cooldown: float = 0.0
    refuses_new: bool = False
    freeze: bool = False


@dataclass(frozen=True, slots=True)
class UpstreamMove:
    """A tag that upstream says to name another manifest than it names here.

    Attributes:
        is_new: the tag was never seen here.
        seen: when the new manifest was first seen here, in seconds since the epoch.
        is_released: an operator has let this move through.
    """

    digest: Digest
    is_new: bool
    seen: float
    is_released: bool = False


@dataclass(frozen=True, slots=True)
class Follow:
    """The tag names upstream's manifest from now on."""


@dataclass(frozen=True, slots=True)
class Keep:
    """The tag keeps what it names here.

    Attributes:
        digest: the manifest that is held back.
        until: when the cool-down ends, in seconds since the epoch; None if only an operator can release it.
    """

    digest: Digest
    reason: Reason
    until: float | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """The tag was never seen here, and may not be pulled yet.

    Attributes:
        digest: the manifest that upstream names.
        until: when the cool-down ends, in seconds since the epoch.
    """

    digest: Digest
    until: float


Decision: TypeAlias = Follow | Keep | Refuse

FOLLOW: Final = Follow()


def decide_move(rule: HoldRule, move: UpstreamMove, now: float) -> Decision:
    """Decide about a move at `now`."""
    if move.is_released:
        return FOLLOW
    if rule.freeze and not move.is_new:
        return Keep(move.digest, Reason.FREEZE)
    until = move.seen + rule.cooldown
    if until <= now or (move.is_new and not rule.refuses_new):
        return FOLLOW
    return Refuse(move.digest, until) if move.is_new else Keep(move.digest, Reason.COOLDOWN, until)


def until(decision: Keep | Refuse) -> str:
    """Until when a move is held back, in words."""
    if isinstance(decision, Keep) and decision.reason is Reason.UNTRUSTED:
        return "until it is signed"
    return "until it is released" if decision.until is None else f"until {format_utc(decision.until)}"
