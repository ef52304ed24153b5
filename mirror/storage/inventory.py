"""What the store has of one image, platform by platform and blob by blob."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from mirror.core.digest import Digest
from mirror.core.manifest import Descriptor, ManifestKind
from mirror.core.platform import Platform
from mirror.storage.blobs import BlobFiles
from mirror.storage.images import held_manifest

# Real indexes nest two deep; a hostile one could nest endlessly.
_MAX_DEPTH = 4
# A hostile index could name very many manifests.
_MAX_MANIFESTS = 1000


@dataclass(frozen=True, slots=True)
class StoredBlob:
    """A config or layer that a manifest names.

    Attributes:
        size: bytes, as the manifest says.
        foreign: another host serves it, so a complete image does not need it here.
    """

    digest: Digest
    media_type: str
    size: int
    is_held: bool
    is_foreign: bool


@dataclass(frozen=True, slots=True)
class StoredManifest:
    """A manifest of an image; an index has no blobs of its own and is not listed.

    Attributes:
        platform: as the index says; None for the manifest of an image without an index.
        is_held: whether the manifest is held; if not, its blobs are not known.
    """

    digest: Digest
    platform: Platform | None
    is_held: bool
    blobs: tuple[StoredBlob, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether a client gets all of it without a request to upstream."""
        return self.is_held and all(blob.is_held or blob.is_foreign for blob in self.blobs)


def inventory(files: BlobFiles, digest: Digest) -> list[StoredManifest]:
    """Return what is held of the image behind a manifest or index. Blocks while it reads the manifests.

    Nothing is listed of an index that is not held: its manifests are not known.
    """
    return list(islice(_manifests(files, digest, None, 0), _MAX_MANIFESTS))


def _manifests(files: BlobFiles, digest: Digest, platform: Platform | None, depth: int) -> Iterator[StoredManifest]:
    manifest = held_manifest(files, digest) if depth <= _MAX_DEPTH else None
    if manifest is None:
        yield StoredManifest(digest, platform, is_held=False)
    elif manifest.kind is ManifestKind.INDEX:
        for child in manifest.children:
            yield from _manifests(files, child.digest, child.platform, depth + 1)
    else:
        blobs = tuple(_stored(files, blob) for blob in manifest.blobs)
        yield StoredManifest(digest, platform, is_held=True, blobs=blobs)


def _stored(files: BlobFiles, blob: Descriptor) -> StoredBlob:
    held = files.size(blob.digest) is not None
    return StoredBlob(blob.digest, blob.media_type, blob.size, is_held=held, is_foreign=blob.is_foreign)
