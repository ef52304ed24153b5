"""What the tags lead to: the manifests and blobs of a bucket that somebody needs."""

from __future__ import annotations

import time
from collections.abc import Callable

from mirror.aio import in_thread, together
from mirror.core.bounded_cache import BoundedCache
from mirror.core.digest import Digest
from mirror.core.digest_filter import DigestFilter
from mirror.core.errors import InvalidInput
from mirror.core.manifest import MAX_MANIFEST_BYTES, Manifest, parse_manifest
from mirror.objects.bucket import Bucket, ListedObject
from mirror.objects.calls import ObjectAbsent
from mirror.objects.keys import TAGS, manifest_key
from mirror.objects.tag_records import MAX_TAG_BYTES, read_tag
from mirror.storage.images import held_manifest
from mirror.storage.store import Store

_MAX_RECORDS = 50_000
_AT_ONCE = 16
# Real indexes nest two deep; a hostile one could nest endlessly.
_MAX_DEPTH = 4


class TagReach:
    """Reads the records of tags in a bucket, and the manifests that they name. A tag that only this store knows counts, too."""

    def __init__(self, bucket: Bucket, store: Store) -> None:
        self._bucket = bucket
        self._store = store
        # By name and time of a record.
        self._records: BoundedCache[tuple[str, float], Digest] = BoundedCache(_MAX_RECORDS)

    async def find(self) -> DigestFilter:
        """Return all digests to which a tag leads. Raises UpstreamError if the bucket cannot be read as a whole."""
        found = DigestFilter()
        for digest in await in_thread(None, self._local_tags):
            await self._add(digest, found.add)
        async for page in self._bucket.pages(TAGS):
            for start in range(0, len(page), _AT_ONCE):
                await together(self._add_tag(record, found) for record in page[start : start + _AT_ONCE])
        return found

    async def parts(self, digest: Digest) -> set[Digest]:
        """Return a digest, and all that it needs if it is a manifest. Raises UpstreamError if the bucket cannot be read."""
        found: set[Digest] = set()

        def add(part: Digest) -> bool:
            is_new = part not in found
            found.add(part)
            return is_new

        await self._add(digest, add)
        return found

    def _local_tags(self) -> list[Digest]:
        return [record.digest for *_, record in self._store.index.tags.matching()]

    async def _add_tag(self, listed: ListedObject, found: DigestFilter) -> None:
        key = (listed.key, listed.written)
        digest = self._records.get(key)
        if digest is None:
            try:
                record = await self._bucket.read(listed.key, MAX_TAG_BYTES)
                digest = read_tag(record.data, time.time()).digest
            except (ObjectAbsent, InvalidInput):
                return
            self._records.put(key, digest)
        await self._add(digest, found.add)

    async def _add(self, digest: Digest, add: Callable[[Digest], bool], depth: int = 0) -> None:
        """Add a digest and all that it needs.

        Args:
            add: False if a digest has been added before.
        """
        if not add(digest) or depth > _MAX_DEPTH:
            return
        manifest = await self.manifest(digest)
        if manifest is not None:
            for blob in manifest.blobs:
                add(blob.digest)
            for child in manifest.children:
                await self._add(child.digest, add, depth + 1)

    async def manifest(self, digest: Digest) -> Manifest | None:
        """Return a manifest of the store or the bucket; None if neither has it. Raises UpstreamError."""
        held = await in_thread(None, held_manifest, self._store.files, digest)
        if held is not None:
            return held
        try:
            found = await self._bucket.read(manifest_key(digest), MAX_MANIFEST_BYTES)
            return parse_manifest(found.data, found.content_type, digest)
        except (ObjectAbsent, InvalidInput):
            return None
