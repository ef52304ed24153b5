"""The tags that are held back, and their release."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from mirror.cache.context import Context
from mirror.cache.new_digests import DigestAges
from mirror.cache.tag_moves import decide_again
from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.names import ImagePattern, Reference, Repository, Tag, is_glob
from mirror.core.tag_moves import Follow, Keep, Reason
from mirror.storage.holds import Hold


@dataclass(frozen=True, slots=True)
class HeldTag:
    """A tag that does not follow upstream for now.

    Attributes:
        old: what it names here; None if it names nothing.
        new: what it names upstream.
        seen: when that was first seen here, in seconds since the epoch.
        until: when the cool-down ends, in seconds since the epoch; None if only an operator can release it.
    """

    repository: Repository
    tag: Tag
    old: Digest | None
    new: Digest
    reason: Reason
    seen: float
    until: float | None


@dataclass(frozen=True, slots=True)
class HeldImage:
    """What can be released: a move of a tag, or a digest that is refused as new.

    Attributes:
        digest: what is let through.
        is_cached: the tag names another image here.
    """

    repository: Repository
    reference: Reference
    digest: Digest
    is_cached: bool

    def __str__(self) -> str:
        return f"{self.repository}{'@' if isinstance(self.reference, Digest) else ':'}{self.reference}"


class HeldTags:
    """Lists and releases them. Each method but `share_release` blocks on the index: call it in a thread."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def all(self) -> list[HeldTag]:
        """Return the tags that are held back, sorted by name."""
        if not self._context.policies.holding:
            return []
        found = (self._held(*row) for row in self._context.store.index.holds.all())
        return sorted((one for one in found if one is not None), key=lambda one: (str(one.repository), str(one.tag)))

    def counts(self) -> dict[str, int]:
        """Return how many tags of each configured registry are held back."""
        counted = Counter(one.repository.registry for one in self.all())
        return {registry: counted[registry] for registry in self._context.registries}

    def matching(self, pattern: ImagePattern) -> list[HeldImage]:
        """Return what a pattern would release."""
        found = [
            HeldImage(one.repository, one.tag, one.new, one.old is not None)
            for one in self.all()
            if pattern.matches(one.repository, one.tag, one.new)
        ]
        digest, repository = _digest(pattern), pattern.only_repository()
        if digest is not None and repository is not None and self._is_refused(repository, digest):
            found.append(HeldImage(repository, digest, digest, is_cached=False))
        return found

    def release(self, image: HeldImage) -> bool:
        """Let what is held back through; False if it is not held back any more, or the index cannot be written."""
        holds = self._context.store.index.holds
        if isinstance(image.reference, Digest):
            is_released = holds.release_digest(image.repository, image.reference)
        else:
            is_released = holds.release(image.repository, image.reference, image.digest)
        if is_released:
            # Answers in memory would be given until their ttl.
            self._context.store.generation.change()
        return is_released

    async def share_release(self, image: HeldImage) -> None:
        """Release an image on the other nodes of the cluster, if there are any and Redis answers; call it on the event loop."""
        if self._context.cluster is not None:
            await self._context.cluster.share_release(image.repository, image.digest, image.reference)

    def _is_refused(self, repository: Repository, digest: Digest) -> bool:
        ages = DigestAges(self._context)
        return not ages.admits(repository, digest) and ages.refusal(repository, digest) is not None

    def _held(self, repository: Repository, tag: Tag, hold: Hold) -> HeldTag | None:
        """What is held back of a tag; None if nothing is any more, because of the time, the rules or the record of the tag."""
        context, rule = self._context, self._context.policies.hold_rule(repository, tag)
        record = context.store.index.tags.get(repository, tag)
        old = None if record is None else record.digest
        if rule is None or old == hold.digest:
            return None
        decision = decide_again(rule, hold, context.clock())
        if isinstance(decision, Follow):
            return None
        reason = decision.reason if isinstance(decision, Keep) else Reason.COOLDOWN
        return HeldTag(repository, tag, old, hold.digest, reason, hold.seen, decision.until)


def _digest(pattern: ImagePattern) -> Digest | None:
    if pattern.digest is None or is_glob(pattern.digest) or pattern.tag is not None:
        return None
    try:
        return Digest.parse(pattern.digest)
    except InvalidInput:
        return None
