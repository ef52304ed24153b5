"""What tags were found to name: written down in one place, and told to whoever wants to know that one has moved."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from mirror.cache.answers import ManifestAnswer
from mirror.cache.context import Context
from mirror.core.digest import Digest
from mirror.core.freshness import TagRecord
from mirror.core.names import Repository, Tag


@dataclass(frozen=True, slots=True)
class Move:
    """A tag that was known to name one manifest and now names another.

    Attributes:
        when: seconds since the epoch.
    """

    repository: Repository
    tag: Tag
    old: Digest
    new: Digest
    when: float


class TagStore:
    """Writes the records of tags.

    Args:
        moved: told of each tag that has moved; must not block.
    """

    def __init__(self, context: Context, moved: Callable[[Move], None] = lambda _: None) -> None:
        self._context = context
        self._moved = moved

    def of(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """What is known of a tag."""
        return self._context.store.index.tag(repository, tag)

    def now(self) -> float:
        """The time of the records, in seconds since the epoch."""
        return self._context.clock()

    async def found(
        self, repository: Repository, tag: Tag, answer: ManifestAnswer, *, asked: float, pulled: bool = True
    ) -> TagRecord | None:
        """Write down what a check has found a tag to name, and return what is known now.

        The checks of one tag are ordered by when they began: what a later one has written stays.

        Args:
            asked: when the check began, in seconds since the epoch.
            pulled: whether a client has asked; else the time of the last pull stays.
        """
        context, now = self._context, self._context.clock()
        # Of a tag that was not known the first check counts as its pull.
        last = now if pulled or self.of(repository, tag) is None else 0.0
        found = TagRecord(answer.digest, answer.media_type, answer.size, checked=asked, changed=now, pulled=last)
        loop = asyncio.get_running_loop()

        def write() -> TagRecord | None:
            before, after = context.store.index.note_check(repository, tag, found, now)
            context.store.index.attachments.forget_absent(repository, tag)
            if before is not None and after is not None and before.digest != after.digest:
                # Not before: what memory forgets sooner it would learn again.
                context.store.generation.change()
                loop.call_soon_threadsafe(self._moved, Move(repository, tag, before.digest, after.digest, now))
            return after

        return await context.note(write, late=found)
