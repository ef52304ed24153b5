"""Fetches the content of one image: its manifests, configs and layers."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from mirror.aio import together
from mirror.cache.answers import ManifestAnswer
from mirror.cache.cache import Cache
from mirror.core.digest import Digest
from mirror.core.errors import InvalidManifest
from mirror.core.manifest import Manifest, ManifestKind, chosen, parse_manifest
from mirror.core.media import SCHEMA1_TYPES
from mirror.core.names import Reference, Repository, Tag
from mirror.core.outcome import Outcome
from mirror.core.platform import Platform
from mirror.core.urgency import Urgency
from mirror.errors import NotFound, StorageError
from mirror.sync.platforms import own_platform
from mirror.sync.progress import Progress
from mirror.sync.quota import SyncQuota

# Indexes nest two deep in practice; a hostile one could nest without end.
_MAX_DEPTH = 4
# Some hundred platforms would be many.
_MAX_MANIFESTS = 1000
# Layers of one image that are fetched at a time, as many as Docker fetches.
_BLOBS_AT_ONCE = 3


@dataclass(frozen=True, slots=True)
class ContentSelection:
    """Which part of an image is fetched.

    Attributes:
        platforms: of an index, the manifests of these.
        whole: of a single manifest, its blobs.
        require_match: fail if no platform matches.
        exact: fetch a single manifest whatever its platform: it was named by its digest, or by a tag that clients pull.
        also: manifests of an index that are fetched whatever their platform; none of them counts for `require_match`.
        without: layers that are not fetched.
    """

    platforms: tuple[Platform, ...]
    whole: bool
    require_match: bool
    exact: bool
    also: frozenset[Digest] = frozenset()
    without: frozenset[Digest] = frozenset()

    def children(self, index: Manifest) -> list[Digest]:
        """Return the manifests of an index that are fetched, in its order."""
        matching = {child.digest for child in chosen(index.children, self.platforms)} | self.also
        return list(dict.fromkeys(child.digest for child in index.children if child.is_manifest and child.digest in matching))


class ImageContent:
    """The content of one image that is being synced. Every method raises MirrorError or InvalidInput.

    Attributes:
        progress: of the sync.
    """

    def __init__(self, cache: Cache, quota: SyncQuota, repository: Repository, progress: Progress) -> None:
        self._cache = cache
        self._quota = quota
        self._repository = repository
        self.progress = progress

    async def named(self, tag: Tag, digest: Digest | None) -> ManifestAnswer:
        """Fetch the manifest of a tag.

        Args:
            digest: what a HEAD of the tag named; None if it named none.
        """
        try:
            return await self.manifest(digest or tag)
        except NotFound:
            # The tag has moved since the HEAD, or upstream answers HEAD wrongly.
            return await self.manifest(tag)

    async def manifest(self, reference: Reference) -> ManifestAnswer:
        """Return a manifest that is in the store; fetch it if it is not."""
        cache, repository = self._cache, self._repository
        if isinstance(reference, Digest):
            cache.pull_policy.check_content(repository, reference)
            held = await cache.by_digest.find_cached(repository, reference)
            if held is not None:
                self.progress.have(reference, held.size, 0)
                return held
            self._quota.check(repository)
            answer = await cache.by_digest.get(repository, reference, head=False)
        else:
            self._quota.check(repository)
            answer = await cache.by_digest.fetch(repository, reference)
            cache.pull_policy.check_content(repository, answer.digest)
        require_stored(answer)
        self.progress.have(answer.digest, answer.size, answer.size)
        return answer

    async def fetch(self, answer: ManifestAnswer, selection: ContentSelection) -> list[Digest]:
        """Fetch everything below a manifest that clients of the selected platforms pull; each manifest once.

        Returns the manifests, the given one first.
        """
        top = _parsed(answer)
        seen, waiting, images = {answer.digest: None}, [(answer.digest, 0)], 0
        while waiting:
            digest, depth = waiting.pop()
            # One at a time: a thousand manifests may have some megabytes each.
            manifest = _parsed(await self.manifest(digest)) if depth else top
            if manifest.kind is not ManifestKind.INDEX:
                images += digest not in selection.also
                if selection.whole or depth:
                    await self._blobs(manifest, () if depth or selection.exact else selection.platforms, selection.without)
                continue
            children = [child for child in selection.children(manifest) if child not in seen]
            seen.update(dict.fromkeys(children))
            if len(seen) > _MAX_MANIFESTS:
                raise InvalidManifest(str(top.digest), f"leads to more than {_MAX_MANIFESTS} manifests")
            waiting += [(child, depth + 1) for child in reversed(children) if depth < _MAX_DEPTH]
        if selection.require_match and not images and top.children:
            platforms = ", ".join(map(str, selection.platforms))
            raise NotFound(f"none of its manifests is for {platforms}; there are {_offered(top)}")
        return list(seen)

    async def _blobs(self, manifest: Manifest, platforms: tuple[Platform, ...], without: frozenset[Digest]) -> None:
        """Fetch the config and the layers; if platforms are given and the config names another one, fail without the layers."""
        blobs = [blob for blob in manifest.blobs_without(without) if not blob.is_foreign]
        self.progress.expect(blobs)
        waiting = iter(blobs)

        async def work(most: int | None = None) -> None:
            for blob in islice(waiting, most):
                with self.progress.fetch(blob.digest):
                    fetched = await self._cache.blobs.ensure_cached(self._repository, blob.digest, Urgency.SYNC)
                self.progress.have(blob.digest, blob.size, fetched)

        if platforms:
            # The config is the first blob.
            await work(1)
            context = self._cache.context
            own = await context.in_thread(own_platform, context.store.files, manifest)
            if own is not None and not any(platform.matches(own) for platform in platforms):
                raise NotFound(f"it is for {own}, not for {', '.join(map(str, platforms))}")
        await together(work() for _ in range(_BLOBS_AT_ONCE))


def require_stored(answer: ManifestAnswer) -> None:
    """Return if a manifest has got into the store.

    Raises:
        InvalidManifest: it is one of schema 1, which is not stored.
        StorageError: the store cannot take it.
    """
    if answer.media_type in SCHEMA1_TYPES:
        raise InvalidManifest(answer.media_type, "nothing vouches for the bytes of schema 1: it can be pulled, but not kept")
    if answer.outcome is Outcome.BYPASS:
        raise StorageError("the store cannot take its manifest", "full")


def _parsed(answer: ManifestAnswer) -> Manifest:
    assert answer.raw is not None
    return parse_manifest(answer.raw, answer.media_type, answer.digest)


def _offered(index: Manifest) -> str:
    return ", ".join(dict.fromkeys(str(child.platform) for child in index.children if child.platform)) or "no platforms"
