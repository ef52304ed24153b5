"""The cache as one thing: the parts that answer pulls, wired together. Rebuilt when the configuration changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from mirror.cache.blobs import Blobs
from mirror.cache.catalog import Catalog
from mirror.cache.content import CachedContent
from mirror.cache.context import Context
from mirror.cache.explainer import Explainer
from mirror.cache.held_tags import HeldTags
from mirror.cache.listings import Listings
from mirror.cache.manifest_by_digest import ManifestByDigest
from mirror.cache.manifest_by_tag import ManifestByTag
from mirror.cache.manifest_gates import ManifestGates
from mirror.cache.manifests import Manifests
from mirror.cache.new_digests import NewDigests
from mirror.cache.prefetch import Prefetch, max_prefetches
from mirror.cache.pull_policy import PullPolicy
from mirror.cache.recorded_grants import RecordedGrants
from mirror.cache.sights import Sights
from mirror.cache.tag_moves import HeldMove, TagMoves
from mirror.cache.tag_store import Move, TagStore
from mirror.config.model import Config
from mirror.core.counts import Count
from mirror.core.policy import Policy
from mirror.download.downloads import Downloads

if TYPE_CHECKING:
    # Imported only where there is a rule of `trust`.
    from mirror.cache.trust_gate import TrustGate


class Cache:
    """Answers pulls from the store, and from upstream what the store lacks.

    Args:
        prefetching: counts the running prefetches of all processes.
        on_event: called on the event loop for each tag that has moved, and for each move that is held back.
    """

    def __init__(
        self,
        config: Config,
        context: Context,
        downloads: Downloads,
        prefetching: Count,
        on_event: Callable[[Move | HeldMove], None],
    ) -> None:
        rules = {name: Policy.parse(entry.allow, entry.deny, name) for name, entry in config.registries.items()}
        prefetches = max_prefetches(config.downloads.max_upstream_connections) if config.downloads.prefetch else 0
        content = CachedContent(context)
        self.context = context
        self.pull_policy = PullPolicy(context, rules)
        self.catalog = Catalog(context.store.index, self.pull_policy, config.default_registry)
        self.listings = Listings(context, self.pull_policy)
        sights = Sights(context)
        self._recorded = RecordedGrants(context, content)
        self.blobs = Blobs(context, content, downloads, self.pull_policy, self._recorded)
        self.prefetch = Prefetch(context, self.blobs, downloads, prefetches, prefetching)
        self.by_digest = ManifestByDigest(context, content, self.prefetch, sights, self._recorded)
        self.held_tags = HeldTags(context)
        self.new_digests = NewDigests(context, content, self.by_digest, sights)
        self.tag_store = TagStore(context, TagMoves(context, sights, on_event), on_event)
        self.trust = self._build_trust(config, content) if any(entry.trust for entry in config.registries.values()) else None
        if self.trust is not None:
            self.tag_store = TagStore(context, TagMoves(context, sights, on_event, self.trust), on_event)
        by_tag = ManifestByTag(context, content, self.by_digest, self.tag_store, self.pull_policy)
        self.tag_checks = by_tag.upstream
        self.explainer = Explainer(context, content, self.pull_policy, self.by_digest, by_tag)
        gates = ManifestGates(self.new_digests, self.trust)
        self.manifests = Manifests(context, self.by_digest, by_tag, gates, self.prefetch)

    def _build_trust(self, config: Config, content: CachedContent) -> TrustGate:
        # Only who has a rule needs them.
        from mirror.cache.judges import build_judges  # noqa: PLC0415
        from mirror.cache.signature_checks import SignatureChecks  # noqa: PLC0415
        from mirror.cache.signature_reader import SignatureReader  # noqa: PLC0415
        from mirror.cache.trust_gate import TrustGate  # noqa: PLC0415

        context = self.context
        # Tags of signatures are looked up without the gate, which waits for them.
        by_tag = ManifestByTag(context, content, self.by_digest, self.tag_store, self.pull_policy)
        reader = SignatureReader(context, by_tag, self.by_digest, self.blobs, self.listings)
        return TrustGate(context, build_judges(config), SignatureChecks(context, self.by_digest, reader))

    async def close(self) -> None:
        """Cancel the requests to upstream."""
        await self.prefetch.close()
        await self.manifests.close()
        if self.trust is not None:
            await self.trust.close()
        await self.blobs.close()
        await self._recorded.close()
        await self.listings.close()
