"""Checks of tags: upstream is asked by a HEAD, which costs no pull, and once for all nodes of a cluster."""

from __future__ import annotations

from dataclasses import dataclass

from mirror.cache.access_index import UNKNOWN_SIZE
from mirror.cache.context import Context
from mirror.cache.manifest_by_digest import ManifestByDigest
from mirror.core.freshness import TagRecord
from mirror.core.names import Repository, Tag
from mirror.upstream.registry import ManifestHead


@dataclass(frozen=True, slots=True)
class TagCheck:
    """What upstream says that a tag names.

    Attributes:
        asked: when upstream was asked, in seconds since the epoch.
    """

    head: ManifestHead
    asked: float


class TagChecks:
    """Checks tags for clients and for the resync."""

    def __init__(self, context: Context, by_digest: ManifestByDigest) -> None:
        self._context = context
        self._by_digest = by_digest

    async def check(self, repository: Repository, tag: Tag, ttl: float, since: float) -> TagCheck:
        """Ask upstream, unless another node of the cluster does or did.

        Args:
            ttl: how long the check of another node counts, in seconds.
            since: checks that began before this time do not count, in seconds since the epoch.

        Raises:
            UpstreamRefusal, UpstreamError: see those.
        """
        cluster = self._context.cluster
        if cluster is None:
            return await self._ask_upstream(repository, tag)
        async with cluster.tags.turn(repository, tag, ttl, since) as turn:
            if turn.found is not None:
                head = ManifestHead(turn.found.digest, turn.found.media_type, turn.found.size)
                await self._by_digest.record_head(repository, tag, head)
                return TagCheck(head, turn.found.checked)
            check = await self._ask_upstream(repository, tag)
            turn.learn(check.head.digest, check.head.media_type, check.head.size, check.asked)
            return check

    async def last_known(self, repository: Repository, tag: Tag) -> TagRecord | None:
        """Return what a tag named last according to other nodes, or else to the bucket; None if neither knows."""
        cluster, objects = self._context.cluster, self._context.objects
        # Other nodes state what upstream has answered, which a hold may keep back.
        may_follow = self._context.policies.hold_rule(repository, tag) is None
        shared = await cluster.tags.find(repository, tag) if cluster is not None and may_follow else None
        if shared is not None:
            size = UNKNOWN_SIZE if shared.size is None else shared.size
            return TagRecord(shared.digest, shared.media_type or "", size, shared.checked, shared.checked, 0.0)
        return None if objects is None else await objects.tag(repository, tag)

    async def _ask_upstream(self, repository: Repository, tag: Tag) -> TagCheck:
        asked = self._context.clock()
        return TagCheck(await self._by_digest.head_upstream(repository, tag), asked)
