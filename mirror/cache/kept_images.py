"""What tags keep naming here, while upstream names something else that is held back."""

from __future__ import annotations

from dataclasses import replace

from mirror.cache.answers import ManifestAnswer
from mirror.cache.manifest_by_digest import ManifestByDigest
from mirror.cache.pull_policy import PullPolicy
from mirror.cache.tag_moves import TagMoves
from mirror.core.digest import Digest
from mirror.core.freshness import TagRecord
from mirror.core.names import Repository, Tag
from mirror.core.outcome import Outcome
from mirror.core.tag_moves import Follow, Refuse
from mirror.errors import OldImageLost, UpstreamRefusal


class KeptImages:
    """Answers with what is recorded of a tag."""

    def __init__(self, by_digest: ManifestByDigest, pull_policy: PullPolicy, moves: TagMoves) -> None:
        self._by_digest = by_digest
        self._pull_policy = pull_policy
        self._moves = moves

    async def find(self, repository: Repository, tag: Tag, record: TagRecord | None, digest: Digest) -> ManifestAnswer | None:
        """What a tag keeps naming although upstream names a digest; None if it follows.

        Args:
            record: what the tag names here; None if it is not known.

        Raises:
            TooYoung: the tag was never seen here, and may not be pulled yet.
            OldImageLost: the tag was purged while it was held back.
        """
        decision = await self._moves.decide(repository, tag, record, digest)
        if isinstance(decision, Follow):
            return None
        if isinstance(decision, Refuse):
            raise self._moves.refusal(repository, tag, decision)
        if record is None:
            raise _old_image_lost(repository, tag, digest)
        self._pull_policy.check_content(repository, record.digest)
        return await self.recorded(repository, record)

    async def recorded(self, repository: Repository, record: TagRecord) -> ManifestAnswer:
        """The recorded manifest of a tag that was just checked; without its bytes if they are not held."""
        cached = await self._by_digest.find_cached(repository, record.digest)
        unread = ManifestAnswer(record.digest, record.media_type, record.size, None, Outcome.REVALIDATED)
        return unread if cached is None else replace(cached, outcome=Outcome.REVALIDATED)

    async def fetch(self, repository: Repository, tag: Tag, digest: Digest) -> ManifestAnswer:
        """The manifest that a tag names here, fetched if it is not held.

        Raises:
            OldImageLost: upstream does not have it any more, and what the tag names there is held back.
        """
        try:
            return await self._by_digest.get(repository, digest, head=False)
        except UpstreamRefusal as error:
            held_back = self._moves.pending(repository, tag)
            if held_back is None or held_back.digest == digest:
                raise
            raise _old_image_lost(repository, tag, held_back.digest) from error


def _old_image_lost(repository: Repository, tag: Tag, digest: Digest) -> OldImageLost:
    what = f"{repository} {tag} names {digest} upstream, which is held back"
    return OldImageLost(f"{what}, and what it named before cannot be had any more")
