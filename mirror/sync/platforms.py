"""The platforms for which an image was pulled, derived from its cached content."""

from __future__ import annotations

import json

from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.manifest import Manifest, ManifestKind
from mirror.core.platform import Platform
from mirror.storage.blobs import BlobFiles
from mirror.storage.images import held_manifest, is_complete

# An image's config is some kilobytes; a larger one is not read.
_MAX_CONFIG_BYTES = 1 << 20


def held_platforms(files: BlobFiles, digest: Digest) -> tuple[Platform, ...]:
    """Return the platforms that are cached completely. Blocks while it reads the manifests."""
    manifest = held_manifest(files, digest)
    if manifest is None:
        return ()
    if manifest.kind is ManifestKind.INDEX:
        return tuple(
            child.platform for child in manifest.children if child.platform is not None and is_complete(files, child.digest)
        )
    own = own_platform(files, manifest) if is_complete(files, digest) else None
    return () if own is None else (own,)


def own_platform(files: BlobFiles, manifest: Manifest) -> Platform | None:
    """Return the platform in an image's config (OCI image-spec, config.md); None if it is not cached or invalid."""
    raw = files.read(manifest.config.digest, _MAX_CONFIG_BYTES) if manifest.config is not None else None
    try:
        config = json.loads(raw or b"")
        parts = [config["os"], config["architecture"], *filter(None, [config.get("variant")])]
        return Platform.parse("/".join(parts))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InvalidInput):
        return None
