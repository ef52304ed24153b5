"""Real images, the same bytes at every build on one machine, in Docker's and in the OCI's formats."""

import gzip
import hashlib
import io
import json
import platform
import random
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ARCHITECTURES = ("amd64", "arm64")
HOST_ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


@dataclass(frozen=True)
class Format:
    """The media types of one family of images."""

    index: str
    manifest: str
    config: str
    layer: str


# Docker image manifest version 2, schema 2, "Media Types".
DOCKER = Format(
    index="application/vnd.docker.distribution.manifest.list.v2+json",
    manifest="application/vnd.docker.distribution.manifest.v2+json",
    config="application/vnd.docker.container.image.v1+json",
    layer="application/vnd.docker.image.rootfs.diff.tar.gzip",
)
# OCI image-spec, "OCI Image Media Types".
OCI = Format(
    index="application/vnd.oci.image.index.v1+json",
    manifest="application/vnd.oci.image.manifest.v1+json",
    config="application/vnd.oci.image.config.v1+json",
    layer="application/vnd.oci.image.layer.v1.tar+gzip",
)


@dataclass(frozen=True)
class Content:
    """Bytes with a media type: a manifest, an index, a config or a layer."""

    media_type: str
    data: bytes

    @cached_property
    def digest(self) -> str:
        """The sha256 digest of the bytes."""
        return f"sha256:{hashlib.sha256(self.data).hexdigest()}"

    def descriptor(self) -> dict[str, object]:
        """The descriptor that names this content."""
        return {"mediaType": self.media_type, "size": len(self.data), "digest": self.digest}


@dataclass(frozen=True)
class Layer:
    """A file tree: its uncompressed tar's digest, and the gzip bytes that a registry holds."""

    diff_id: str
    compressed: bytes


@dataclass(frozen=True)
class Image:
    """An image for one platform."""

    manifest: Content
    config: Content
    layers: tuple[Content, ...]
    architecture: str

    @property
    def blobs(self) -> tuple[Content, ...]:
        """Config and layers."""
        return (self.config, *self.layers)


@dataclass(frozen=True)
class Index:
    """A multi-platform image: an OCI index or a Docker manifest list."""

    manifest: Content
    images: tuple[Image, ...]

    def for_host(self) -> Image:
        """The image that a client on this machine has to pick."""
        return next(image for image in self.images if image.architecture == HOST_ARCHITECTURE)


def layer_of_files(paths: Iterable[Path]) -> Layer:
    """A layer with real files of this machine, in the given order."""
    members = ((str(path).lstrip("/"), path.read_bytes()) for path in paths)
    return _layer(members, compresslevel=1)


def layer_of_noise(size: int, seed: int) -> Layer:
    """A layer of `size` bytes that do not compress, the same for the same seed."""
    data = random.Random(seed).randbytes(size)
    return _layer([(f"srv/noise-{seed}", data)], compresslevel=0)


def build_image(family: Format, architecture: str, layers: Sequence[Layer]) -> Image:
    """An image of these layers."""
    contents = tuple(Content(family.layer, layer.compressed) for layer in layers)
    config = Content(family.config, _json(_config(architecture, layers)))
    manifest = {
        "schemaVersion": 2,
        "mediaType": family.manifest,
        "config": config.descriptor(),
        "layers": [layer.descriptor() for layer in contents],
    }
    return Image(Content(family.manifest, _json(manifest)), config, contents, architecture)


def build_index(family: Format, images: Sequence[Image]) -> Index:
    """An index of these images."""
    manifests = [
        {**image.manifest.descriptor(), "platform": {"architecture": image.architecture, "os": "linux"}} for image in images
    ]
    document = {"schemaVersion": 2, "mediaType": family.index, "manifests": manifests}
    return Index(Content(family.index, _json(document)), tuple(images))


def _config(architecture: str, layers: Sequence[Layer]) -> dict[str, object]:
    created = "2024-01-01T00:00:00Z"
    return {
        "architecture": architecture,
        "os": "linux",
        "created": created,
        "config": {"Cmd": ["/bin/true"]},
        "history": [{"created": created, "created_by": f"layer {layer.diff_id[:19]}"} for layer in layers],
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
    }


def _layer(members: Iterable[tuple[str, bytes]], compresslevel: int) -> Layer:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size, member.mode, member.mtime = len(data), 0o644, 1_700_000_000
            archive.addfile(member, io.BytesIO(data))
    tar = buffer.getvalue()
    diff_id = f"sha256:{hashlib.sha256(tar).hexdigest()}"
    return Layer(diff_id, gzip.compress(tar, compresslevel, mtime=0))


def _json(document: dict[str, object]) -> bytes:
    # Indented on purpose: a mirror that re-encodes manifests would change these bytes.
    return json.dumps(document, indent=3).encode()
