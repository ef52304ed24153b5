"""What tags were found to name: written down in one place, and told to whoever wants to know that one has moved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mirror.core.digest import Digest
from mirror.core.freshness import TagRecord
from mirror.core.names import Repository, Tag
from mirror.pull.answers import ManifestAnswer
from mirror.pull.context import Context


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


class Records:
    """Writes the records of tags.

    Args:
        moved: told of each tag that has moved; must not block.
    """

    def __init__(self, context: Context, moved: Callable[[Move], None] = lambda _: None) -> None:
        self._context = context
        self._moved = moved

    def of(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """What is known of a tag."""
        return self._context.index.tag(repository, tag)

    async def found(
        self, repository: Repository, tag: Tag, answer: ManifestAnswer, *, pulled: bool = True, checked: float | None = None
    ) -> None:
        """Write down what upstream says now that a tag names.

        Args:
            pulled: whether a client has asked; else the time of the last pull stays.
            checked: when upstream has said so; now, if nothing is said.
        """
        context, now = self._context, self._context.clock()
        # Read again: the check may have taken long, and others check, too.
        known = self.of(repository, tag)
        moved = known is not None and known.digest != answer.digest
        record = TagRecord(
            answer.digest,
            answer.media_type,
            answer.size,
            checked=now if checked is None else checked,
            changed=now if known is None or moved else known.changed,
            pulled=now if pulled or known is None else known.pulled,
        )
        await context.in_thread(context.index.put_tag, repository, tag, record)
        if known is not None and moved:
            context.generation.change()
            self._moved(Move(repository, tag, known.digest, answer.digest, now))
