"""Which manifests of an image a bundle gets without being asked for by platform, and which of them `docker load` is given."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from mirror.core.digest import Digest
from mirror.core.errors import InvalidPlatform
from mirror.core.manifest import Manifest, ManifestKind, chosen
from mirror.core.media import LOADABLE_CONFIG_TYPES, LOADABLE_LAYER_TYPES
from mirror.core.platform import Platform
from mirror.storage.blobs import BlobFiles
from mirror.storage.images import held_manifest
from mirror.transfer.bundle import DockerImage

# Indexes nest two deep in practice; a hostile one could nest without end.
_MAX_DEPTH: Final = 4


def held_children(
    files: BlobFiles, digest: Digest, platforms: Sequence[Platform], without: frozenset[Digest]
) -> frozenset[Digest]:
    """Return the held manifests below an index that are exported whatever their platform. Blocks while it reads manifests.

    They are all that are held whole; if platforms are given, the attestations of theirs.

    Args:
        without: layers that need not be held.
    """
    return frozenset(_held_children(files, digest, platforms, without, 0))


def _held_children(
    files: BlobFiles, digest: Digest, platforms: Sequence[Platform], without: frozenset[Digest], depth: int
) -> set[Digest]:
    index = held_manifest(files, digest) if depth < _MAX_DEPTH else None
    found: set[Digest] = set()
    if index is None:
        return found
    asked = {child.digest for child in chosen(index.children, platforms)}
    for child in index.children:
        if not child.is_manifest or (platforms and child.attests not in asked):
            continue
        below = _held_children(files, child.digest, platforms, without, depth + 1)
        if below or is_whole(files, held_manifest(files, child.digest), without):
            found |= {child.digest, *below}
    return found


def is_whole(files: BlobFiles, manifest: Manifest | None, without: frozenset[Digest] = frozenset()) -> bool:
    """Whether a manifest that is no index is held with its config and its layers."""
    if manifest is None or manifest.kind is ManifestKind.INDEX:
        return False
    return all(files.size(blob.digest) is not None for blob in manifest.blobs_without(without) if not blob.is_foreign)


@dataclass(frozen=True, slots=True)
class PlatformManifest:
    """A manifest of a bundle that is no index.

    Attributes:
        platform: as the index or the config states it; None if neither does.
    """

    manifest: Manifest
    platform: Platform | None


def docker_image(manifests: Sequence[PlatformManifest], platforms: Iterable[Platform]) -> DockerImage | str:
    """Return the image that `docker load` gets, or why there is none.

    It is that of the first platform that was asked for, else that of this machine, else the first.
    """
    suitable = [(one, image) for one in manifests if isinstance(image := _as_docker_image(one.manifest), DockerImage)]
    for platform in (*platforms, *_own_platform()):
        for one, image in suitable:
            if platform.matches(one.platform):
                return image
    if suitable:
        return suitable[0][1]
    return str(_as_docker_image(manifests[0].manifest)) if manifests else "no manifest of an image is in the bundle"


def _as_docker_image(manifest: Manifest) -> DockerImage | str:
    config = manifest.config
    if config is None or config.media_type not in LOADABLE_CONFIG_TYPES:
        return "it has no config of an image"
    layers = manifest.blobs[1:]
    if any(layer.is_foreign for layer in layers):
        return "another host serves a part of its layers"
    other = next((layer.media_type for layer in layers if layer.media_type not in LOADABLE_LAYER_TYPES), None)
    if other is not None:
        return f"Docker 20.10 does not load layers of the type {other}"
    return DockerImage(config.digest, tuple(layer.digest for layer in layers))


def _own_platform() -> list[Platform]:
    try:
        return [Platform.parse(f"linux/{os.uname().machine}")]
    except InvalidPlatform:
        return []
