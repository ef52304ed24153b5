"""Follows tags that have moved upstream, or holds the moves back: the one place where pulls and the resync ask."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import structlog

from mirror.cache.context import Context
from mirror.cache.new_digests import too_young
from mirror.cache.sights import Sights
from mirror.core.digest import Digest
from mirror.core.freshness import TagRecord
from mirror.core.names import Repository, Tag
from mirror.core.tag_moves import FOLLOW, Decision, Follow, HoldRule, Keep, Reason, Refuse, UpstreamMove, decide_move, until
from mirror.errors import TooYoung
from mirror.storage.holds import Hold
from mirror.storage.index import ReadCheck

if TYPE_CHECKING:
    # Imported only where there is a rule of `trust`.
    from mirror.cache.trust_gate import TrustGate

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class HeldMove:
    """A move of a tag that is held back, reported once.

    Attributes:
        old: what the tag names here; None if it names nothing.
        new: what is held back.
        when: seconds since the epoch.
        confirmed: when the last check that found `old` began, in seconds since the epoch; 0 without one.
        until: when the cool-down ends, in seconds since the epoch; None if only an operator can release it.
    """

    repository: Repository
    tag: Tag
    old: Digest | None
    new: Digest
    when: float
    confirmed: float
    reason: Reason
    until: float | None


class TagMoves:
    """Decides about moves of tags, and records those that are held back.

    Args:
        on_held: called on the event loop for each move that is held back, once for each tag and digest.

    Attributes:
        trust: decides whether a tag may follow to a manifest; None without a rule of `trust`.
    """

    def __init__(
        self, context: Context, sights: Sights, on_held: Callable[[HeldMove], None], trust: TrustGate | None = None
    ) -> None:
        self.trust = trust
        self._context = context
        self._sights = sights
        self._on_held = on_held

    async def decide(self, repository: Repository, tag: Tag, record: TagRecord | None, digest: Digest) -> Decision:
        """Decide about what upstream says that a tag names; a move that is not followed is recorded and reported.

        Args:
            record: what the tag names here; None if it is not known.

        Raises:
            UpstreamError: nobody knows for now whether the manifest is signed.
            StorageError: the tag has a rule, and nobody knows for now whether it is new.
        """
        decision = await self._decide_hold(repository, tag, record, digest)
        if self.trust is None or record is None or record.digest == digest or not isinstance(decision, Follow):
            return decision
        if await self.trust.follows(repository, tag, record.digest, digest):
            return FOLLOW
        hold = self._context.store.index.holds.get(repository, tag)
        if hold is not None:
            overruled = replace(hold, is_overruled=True)
            await self._context.note(partial(self._context.store.index.holds.put, repository, tag, overruled), late=False)
        return Keep(digest, Reason.UNTRUSTED)

    async def _decide_hold(self, repository: Repository, tag: Tag, record: TagRecord | None, digest: Digest) -> Decision:
        """Decide by cool-down and freeze."""
        rule = self._context.policies.hold_rule(repository, tag)
        if rule is None:
            return FOLLOW
        index = self._context.store.index
        reliable = ReadCheck(index)
        hold = index.holds.get(repository, tag)
        if record is None:
            # The caller may not have been able to read it.
            record = index.tags.get(repository, tag)
            reliable.check(f"whether {repository} {tag} is new")
        if record is not None and record.digest == digest:
            if hold is not None:
                await self._context.note(partial(self._end, repository, tag), late=None)
            return FOLLOW
        sight = await self._sights.first(repository, digest)
        is_released = sight.is_released or (hold is not None and hold.digest == digest and hold.is_released)
        # A purge deletes the record of a tag, not its hold.
        move = UpstreamMove(digest, record is None and (hold is None or hold.is_new), sight.first, is_released)
        now = self._context.clock()
        decision = decide_move(rule, move, now)
        if not isinstance(decision, Follow) and self._context.cluster is not None:
            sight, released = await self._sights.shared(repository, digest, sight)
            move = replace(move, seen=sight.first, is_released=sight.is_released or str(tag) in released)
            decision = decide_move(rule, move, now)
        if not isinstance(decision, Follow):
            found = Hold(digest, sight.first, now, is_new=move.is_new)
            await self._hold(repository, tag, record, found, decision)
        return decision

    def pending(self, repository: Repository, tag: Tag) -> Keep | Refuse | None:
        """What is held back of a tag, as last seen; None if nothing is, or not any more: the next check decides."""
        rule = self._context.policies.hold_rule(repository, tag)
        hold = None if rule is None else self._context.store.index.holds.get(repository, tag)
        if rule is None or hold is None:
            return None
        decision = decide_again(rule, hold, self._context.clock())
        return None if isinstance(decision, Follow) else decision

    def is_mature(self, repository: Repository, tag: Tag) -> bool:
        """Whether a move that was held back may be followed by now, so that upstream has to be asked at once."""
        context, rule = self._context, self._context.policies.hold_rule(repository, tag)
        if rule is None or repository.registry in context.policies.offline:
            return False
        hold = context.store.index.holds.get(repository, tag)
        if hold is None or hold.is_overruled:
            return False
        return isinstance(decide_again(rule, hold, context.clock()), Follow)

    def refusal(self, repository: Repository, tag: Tag, refused: Refuse) -> TooYoung:
        """The error for a tag that may not be pulled yet."""
        return too_young(f"{repository} {tag} names {refused.digest}, which", refused.until, self._context.clock())

    def raise_if_refused(self, repository: Repository, tag: Tag) -> None:
        """Raise TooYoung if upstream was asked within the ttl for a tag that may not be pulled yet."""
        refused = self.pending(repository, tag)
        hold = self._context.store.index.holds.get(repository, tag) if isinstance(refused, Refuse) else None
        if hold is None or not isinstance(refused, Refuse):
            return
        if 0 <= self._context.clock() - hold.checked < self._context.policies.for_tag(repository, tag).ttl:
            raise self.refusal(repository, tag, refused)

    # ---- rows

    async def _hold(
        self, repository: Repository, tag: Tag, record: TagRecord | None, hold: Hold, decision: Keep | Refuse
    ) -> None:
        reason = decision.reason if isinstance(decision, Keep) else Reason.COOLDOWN
        old, confirmed = (None, 0.0) if record is None else (record.digest, record.checked)
        held = HeldMove(repository, tag, old, hold.digest, hold.checked, confirmed, reason, decision.until)
        loop = asyncio.get_running_loop()

        def write() -> None:
            if self._context.store.index.holds.put(repository, tag, hold):
                log.info(
                    "tag_held_back",
                    image=f"{repository}:{tag}",
                    digest=str(hold.digest),
                    reason=reason.value,
                    said=until(decision),
                )
                loop.call_soon_threadsafe(self._on_held, held)

        await self._context.note(write, late=None)

    def _end(self, repository: Repository, tag: Tag) -> None:
        if self._context.store.index.holds.end(repository, tag):
            # Answers in memory say that something is held back.
            self._context.store.generation.change()


def decide_again(rule: HoldRule, hold: Hold, now: float) -> Decision:
    """Decide at `now` about a move that is recorded."""
    return decide_move(rule, UpstreamMove(hold.digest, hold.is_new, hold.seen, hold.is_released), now)
