"""The records of tags: one place writes them, and reports each tag that has moved."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from mirror.cache.answers import ManifestAnswer
from mirror.cache.context import Context
from mirror.cache.tag_moves import TagMoves
from mirror.core.digest import Digest
from mirror.core.freshness import TagRecord
from mirror.core.names import Repository, Tag


@dataclass(frozen=True, slots=True)
class Move:
    """A tag that named one manifest and now names another.

    Attributes:
        when: seconds since the epoch.
        confirmed: when the last check that found `old` began, in seconds since the epoch.
    """

    repository: Repository
    tag: Tag
    old: Digest
    new: Digest
    when: float
    confirmed: float


class TagStore:
    """Reads and writes the records of tags.

    Args:
        on_move: called on the event loop for each tag that has moved.

    Attributes:
        moves: decides whether a tag that has moved upstream is followed; ask it before `update`.
    """

    def __init__(self, context: Context, moves: TagMoves, on_move: Callable[[Move], None]) -> None:
        self.moves = moves
        self._context = context
        self._on_move = on_move

    def get(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """The record of a tag, or None. In a cluster checks do not count if events have been missed since."""
        tags = self._context.store.index.tags
        record = tags.get(repository, tag)
        if record is None or self._context.cluster is None:
            return record
        return replace(record, due=max(record.due, tags.forgotten_at()))

    def now(self) -> float:
        """The present time on the clock of the records, in seconds since the epoch."""
        return self._context.clock()

    async def recall(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """Return what other nodes of the cluster keep a tag at that this one does not know; None for a tag that may follow.

        The record needs a check, and is not written yet.
        """
        context = self._context
        if context.cluster is None or context.policies.hold_rule(repository, tag) is None:
            return None
        kept = await context.cluster.kept_tags.find(repository, tag)
        return None if kept is None else TagRecord(kept.digest, kept.media_type, kept.size, 0.0, context.clock(), 0.0)

    async def update(
        self,
        repository: Repository,
        tag: Tag,
        answer: ManifestAnswer,
        *,
        expected: Digest | None,
        asked: float,
        pulled: bool = True,
    ) -> TagRecord | None:
        """Record what a check has found a tag to name, and return the record that stands now.

        Checks of one tag are ordered by their begin: the record of a later one stays. So does that of a tag whose moves may be
        held back if it is not the one from which the move was decided.

        Args:
            expected: what the tag named here when its move was decided; None if that was not known.
            asked: when the check began, in seconds since the epoch.
            pulled: whether a client asked; otherwise the time of the last pull stays.
        """
        context, now = self._context, self._context.clock()
        # The first check of a new tag counts as its pull.
        last = now if pulled or self.get(repository, tag) is None else 0.0
        found = TagRecord(answer.digest, answer.media_type, answer.size, checked=asked, changed=now, pulled=last)
        is_held = context.policies.hold_rule(repository, tag) is not None
        check = _Check(repository, tag, found, expected, is_held)
        write = partial(self._write, check, asyncio.get_running_loop())
        after: TagRecord | None = await context.note(write, late=found)
        if is_held and after is not None and context.cluster is not None:
            has_moved = expected is not None and expected != after.digest
            await context.cluster.kept_tags.put(repository, tag, after, replace=has_moved)
        return after

    def _write(self, check: _Check, loop: asyncio.AbstractEventLoop) -> TagRecord | None:
        """Write what a check has found, and return the record that stands now. In a thread."""
        store, repository, tag, now = self._context.store, check.repository, check.tag, check.found.changed
        before, after = store.index.tags.note_check(repository, tag, check.found, now, check.replaces)
        store.index.attachments.delete_absent(repository, tag)
        # A tag that other nodes keep, too, is recorded here while it is held back.
        if after is not None and (before is None or before.digest != after.digest) and after.digest != check.expected:
            store.index.holds.end(repository, tag)
        if before is not None and after is not None and before.digest != after.digest:
            # After the write: a cache that is emptied earlier would read the old record again.
            store.generation.change()
            store.index.history.note_move(repository, tag, before.digest, after.digest, now)
            move = Move(repository, tag, before.digest, after.digest, now, before.checked)
            loop.call_soon_threadsafe(self._on_move, move)
        return after


@dataclass(frozen=True, slots=True)
class _Check:
    """What a check of a tag has found.

    Attributes:
        expected: what the tag named when its move was decided.
        is_held: moves of the tag may be held back.
    """

    repository: Repository
    tag: Tag
    found: TagRecord
    expected: Digest | None
    is_held: bool

    def replaces(self, known: TagRecord | None) -> bool:
        """Whether a record that stands gives way to what was found."""
        return not self.is_held or known is None or known.digest in (self.expected, self.found.digest)
