"""What a bundle has of an image, and what it leaves out, read from the manifests in the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mirror.core.digest import Digest
from mirror.core.manifest import Manifest, ManifestKind
from mirror.core.platform import Platform
from mirror.errors import StorageError
from mirror.storage.blobs import BlobFiles
from mirror.storage.images import held_manifest
from mirror.sync.platforms import own_platform
from mirror.transfer.selection import PlatformManifest


@dataclass
class Contents:
    """The content of one image.

    Attributes:
        manifests: those that are no index.
        blobs: manifests, configs and layers, in the order in which they are written.
        platforms: those of its manifests.
        left_out: what is needed and not written; a manifest with its platform, a layer with an empty text.
    """

    manifests: list[PlatformManifest] = field(default_factory=list)
    blobs: list[Digest] = field(default_factory=list)
    platforms: list[str] = field(default_factory=list)
    left_out: dict[Digest, str] = field(default_factory=dict)


def read_contents(files: BlobFiles, digests: Sequence[Digest], without: frozenset[Digest]) -> Contents:
    """Return the content of the image with these manifests. Blocks while it reads them.

    Args:
        without: layers that are left out.

    Raises:
        StorageError: a manifest is not held.
    """
    found, included = Contents(), set(digests)
    stated: dict[Digest, Platform | None] = {}
    for digest in digests:
        manifest = held_manifest(files, digest)
        if manifest is None:
            raise StorageError(f"{digest} has left the store meanwhile", "io")
        found.blobs.append(digest)
        for child in manifest.children:
            stated[child.digest] = child.platform
            if child.digest not in included:
                found.left_out[child.digest] = str(child.platform or "")
        if manifest.kind is not ManifestKind.INDEX:
            _add_image(files, manifest, stated.get(digest), found, without)
    return found


def _add_image(
    files: BlobFiles, manifest: Manifest, stated: Platform | None, found: Contents, without: frozenset[Digest]
) -> None:
    platform = stated or own_platform(files, manifest)
    found.manifests.append(PlatformManifest(manifest, platform))
    if platform is not None:
        found.platforms.append(str(platform))
    kept = {blob.digest for blob in manifest.blobs_without(without)}
    for blob in manifest.blobs:
        if blob.digest not in kept:
            found.left_out[blob.digest] = ""
        elif not blob.is_foreign or files.size(blob.digest) is not None:
            found.blobs.append(blob.digest)
