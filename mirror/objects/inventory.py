"""What the bucket has of one image, for operators."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from mirror.aio import together
from mirror.core.digest import Digest
from mirror.core.freshness import TagRecord
from mirror.core.names import Reference, Repository, Tag
from mirror.errors import UpstreamError
from mirror.objects.bucket import Bucket
from mirror.objects.keys import blob_key, manifest_key
from mirror.objects.reader import ObjectReader
from mirror.objects.tag_reach import TagReach

# Somebody waits for the answer.
_TIMEOUT_S = 5.0
_MAX_OBJECTS = 500
_AT_ONCE = 16


@dataclass(slots=True)
class ImageInBucket:
    """What a bucket has of an image.

    Attributes:
        tag: what the bucket says that the tag named last; None for a digest, and if it does not say.
        manifests: how many it has, the index included.
        blobs: how many it has of those that these manifests name, and that manifests in the store name.
        missing: blobs that it lacks of those.
        size: bytes of all of them that it has.
        problem: why this is not all; None if it is.
    """

    tag: TagRecord | None = None
    manifests: int = 0
    blobs: int = 0
    missing: list[Digest] = field(default_factory=list)
    size: int = 0
    problem: str | None = None


class BucketInventory:
    """Looks for images in a bucket."""

    def __init__(self, reader: ObjectReader, reach: TagReach) -> None:
        self._reader = reader
        self._reach = reach

    async def image(self, repository: Repository, reference: Reference, digest: Digest | None) -> ImageInBucket:
        """Look for an image.

        Args:
            digest: what the reference names here; None if that is not known.
        """
        found = ImageInBucket()
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                if isinstance(reference, Tag):
                    found.tag = await self._reader.tag(repository, reference)
                root = digest or (None if found.tag is None else found.tag.digest)
                if root is not None:
                    await self._count(root, found)
        except TimeoutError:
            found.problem = "the bucket answers too slowly"
        except UpstreamError as error:
            found.problem = str(error)
        return found

    async def _count(self, root: Digest, found: ImageInBucket) -> None:
        bucket = self._reader.bucket
        waiting, seen, blobs = [root], set[Digest](), dict[Digest, None]()
        while waiting and len(seen) < _MAX_OBJECTS:
            digest = waiting.pop()
            if digest in seen:
                continue
            seen.add(digest)
            size = await bucket.size(manifest_key(digest))
            found.manifests += size is not None
            found.size += size or 0
            manifest = await self._reach.manifest(digest)
            if manifest is not None:
                waiting += [child.digest for child in manifest.children]
                blobs.update(dict.fromkeys(blob.digest for blob in manifest.blobs if not blob.is_foreign))
        await self._count_blobs(bucket, list(blobs)[:_MAX_OBJECTS], found)

    @staticmethod
    async def _count_blobs(bucket: Bucket, digests: list[Digest], found: ImageInBucket) -> None:
        for start in range(0, len(digests), _AT_ONCE):
            batch = digests[start : start + _AT_ONCE]
            sizes: dict[Digest, int | None] = {}
            await together(BucketInventory._ask_size(bucket, digest, sizes) for digest in batch)
            found.blobs += sum(size is not None for size in sizes.values())
            found.size += sum(size or 0 for size in sizes.values())
            found.missing += [digest for digest in batch if sizes[digest] is None]

    @staticmethod
    async def _ask_size(bucket: Bucket, digest: Digest, sizes: dict[Digest, int | None]) -> None:
        sizes[digest] = await bucket.size(blob_key(digest))
