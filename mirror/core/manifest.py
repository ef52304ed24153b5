"""Manifests and indexes as the mirror sees them: bytes that stay as they are, and what they refer to.

OCI image-spec, manifest.md, image-index.md and descriptor.md; Docker manifest v2 schema 2.
"""

import json
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NoReturn

from mirror.core import media
from mirror.core.digest import Digest
from mirror.core.errors import DigestMismatch, InvalidDigest, InvalidManifest
from mirror.core.platform import Platform

__all__ = ["MAX_MANIFEST_BYTES", "Descriptor", "Manifest", "ManifestKind", "Platform", "parse_manifest"]

MAX_MANIFEST_BYTES: Final = 4 << 20
"""Larger manifests are refused (OCI distribution-spec, Pushing manifests)."""

_MAX_SIZE: Final = 2**63 - 1


class ManifestKind(StrEnum):
    """What a manifest is, whichever vendor's media type it has."""

    MANIFEST = "manifest"
    INDEX = "index"
    ARTIFACT = "artifact"
    SCHEMA1 = "schema1"


_KINDS: Final = {
    **dict.fromkeys(media.MANIFEST_TYPES, ManifestKind.MANIFEST),
    **dict.fromkeys(media.INDEX_TYPES, ManifestKind.INDEX),
    **dict.fromkeys(media.SCHEMA1_TYPES, ManifestKind.SCHEMA1),
    media.OCI_ARTIFACT: ManifestKind.ARTIFACT,
}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to content: digest, media type and size in bytes (OCI image-spec, descriptor.md).

    Attributes:
        attests: the manifest of the same index that this one is an attestation of (BuildKit, docs/attestations,
            attestation-storage.md).
    """

    digest: Digest
    media_type: str
    size: int
    platform: Platform | None = None
    urls: tuple[str, ...] = ()
    artifact_type: str | None = None
    attests: Digest | None = None

    @property
    def is_foreign(self) -> bool:
        """Whether the content lives elsewhere, so that the registry may well not have it."""
        foreign = (media.DOCKER_FOREIGN_LAYER, media.OCI_FOREIGN_LAYER)
        return bool(self.urls) or self.media_type.startswith(foreign)

    @property
    def is_manifest(self) -> bool:
        """Whether it is requested as a manifest; build caches list layers in an index, too."""
        return media.strip_parameters(self.media_type) in _KINDS


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest or index that has been checked.

    `raw` is what was received, to the byte. `children` are the entries of an index; `blobs` are config and
    layers, foreign ones included. SCHEMA1 has neither, and its digest is unverified: it must not be stored.
    """

    raw: bytes
    media_type: str
    digest: Digest
    kind: ManifestKind
    children: tuple[Descriptor, ...] = ()
    blobs: tuple[Descriptor, ...] = ()
    config: Descriptor | None = None
    subject: Descriptor | None = None
    artifact_type: str | None = None

    def blobs_without(self, layers: Container[Digest]) -> list[Descriptor]:
        """Return the config and the layers, each once, but for these layers."""
        blobs = {blob.digest: blob for blob in self.blobs}
        kept = None if self.config is None else self.config.digest
        return [blob for digest, blob in blobs.items() if digest == kept or digest not in layers]


def parse_manifest(raw: bytes, content_type: str | None, expected: Digest | None) -> Manifest:
    """Check a manifest's body against its type and, if one is expected, its digest.

    The type is the header's if that names a manifest, else the body's `mediaType`, else it follows from the shape.
    Raises InvalidManifest for whatever is no manifest, and DigestMismatch for other bytes than expected.
    """
    body = _load(raw)
    media_type = _media_type(body, content_type)
    kind = _KINDS[media_type]
    if kind is ManifestKind.SCHEMA1:
        # Its digest is over the payload without the signatures: the hash of the body is another one.
        if body.get("schemaVersion") != 1:
            raise InvalidManifest(raw, "said to be schema 1, but schemaVersion is not 1")
        return Manifest(raw, media_type, expected or Digest.of(raw), kind)
    digest = Digest.of(raw, expected.algorithm if expected is not None else "sha256")
    if expected is not None and digest != expected:
        raise DigestMismatch(raw, f"its digest is {digest}, expected {expected}")
    config = _descriptor(body["config"], "config") if body.get("config") is not None else None
    layers = _descriptors(body, "blobs" if kind is ManifestKind.ARTIFACT else "layers")
    return Manifest(
        raw=raw,
        media_type=media_type,
        digest=digest,
        kind=kind,
        children=_descriptors(body, "manifests") if kind is ManifestKind.INDEX else (),
        blobs=layers if config is None else (config, *layers),
        config=config,
        subject=_descriptor(body["subject"], "subject") if body.get("subject") is not None else None,
        artifact_type=_optional_text(body, "artifactType", "manifest"),
    )


def _load(raw: bytes) -> dict[str, Any]:
    try:
        body = json.loads(raw.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InvalidManifest(raw, f"not JSON ({type(error).__name__})") from error
    if not isinstance(body, dict):
        raise InvalidManifest(raw, "not a JSON object")
    return body


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _media_type(body: dict[str, Any], content_type: str | None) -> str:
    shape = _shape(body)
    stated = body.get("mediaType")
    for candidate in (content_type, stated, shape):
        if isinstance(candidate, str) and (known := media.strip_parameters(candidate)) in _KINDS:
            break
    else:
        raise InvalidManifest(content_type or stated, "neither the type nor the shape of a manifest")
    kind = _KINDS[known]
    if kind in (ManifestKind.MANIFEST, ManifestKind.INDEX) and (shape is None or _KINDS[shape] is not kind):
        raise InvalidManifest(known, "the body does not have the shape of its type")
    return known


def _shape(body: dict[str, Any]) -> str | None:
    """The media type a body without any would have. A body of both shapes is an attack (CVE-2021-41190)."""
    index = body.get("manifests") is not None
    manifest = body.get("config") is not None or body.get("layers") is not None
    if index and manifest:
        raise InvalidManifest(body.get("mediaType"), "has the members of an index and of a manifest at once")
    if body.get("fsLayers") is not None:
        return media.SCHEMA1_SIGNED if "signatures" in body else media.SCHEMA1
    if "manifests" in body and not manifest:
        return media.OCI_INDEX
    return media.OCI_MANIFEST if body.get("config") is not None else None


def _descriptors(body: dict[str, Any], key: str) -> tuple[Descriptor, ...]:
    # Go writes an empty list as null.
    entries = body.get(key)
    if entries is None:
        return ()
    if not isinstance(entries, list):
        raise InvalidManifest(entries, f"{key} is not a list")
    return tuple(_descriptor(entry, f"{key}[{position}]") for position, entry in enumerate(entries))


def _descriptor(entry: object, where: str) -> Descriptor:
    if not isinstance(entry, dict):
        raise InvalidManifest(entry, f"{where} is not an object")
    size = entry.get("size")
    if type(size) is not int or not 0 <= size <= _MAX_SIZE:
        raise InvalidManifest(size, f"{where} has no valid size")
    return Descriptor(
        digest=_digest(entry, where),
        media_type=_optional_text(entry, "mediaType", where) or "",
        size=size,
        platform=_platform(entry.get("platform"), where),
        urls=_urls(entry.get("urls"), where),
        artifact_type=_optional_text(entry, "artifactType", where),
        attests=_attested(entry.get("annotations")),
    )


def _attested(annotations: object) -> Digest | None:
    """The manifest that an attestation is about; annotations that are no such reference are none of the mirror's business."""
    if not isinstance(annotations, dict) or annotations.get("vnd.docker.reference.type") != "attestation-manifest":
        return None
    try:
        return Digest.parse(str(annotations.get("vnd.docker.reference.digest")))
    except InvalidDigest:
        return None


def _digest(entry: dict[str, Any], where: str) -> Digest:
    text = entry.get("digest")
    if not isinstance(text, str):
        raise InvalidManifest(text, f"{where} has no digest")
    try:
        return Digest.parse(text)
    except InvalidDigest as error:
        raise InvalidManifest(text, f"{where} has an invalid digest") from error


def _platform(entry: object, where: str) -> Platform | None:
    if entry is None:
        return None
    if not isinstance(entry, dict):
        raise InvalidManifest(entry, f"{where} has a platform that is not an object")
    os, architecture, variant = (
        _optional_text(entry, key, f"{where}.platform") or "" for key in ("os", "architecture", "variant")
    )
    return Platform(os, architecture, variant)


def _urls(value: object, where: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(url, str) for url in value):
        raise InvalidManifest(value, f"{where} has urls that are not a list of strings")
    return tuple(value)


def _optional_text(entry: dict[str, Any], key: str, where: str) -> str | None:
    value = entry.get(key)
    # All texts read here are names in ASCII; anything else could not be sent or logged as it is.
    if value is not None and not (isinstance(value, str) and value.isascii() and value.isprintable()):
        raise InvalidManifest(value, f"{where} has a {key} that is not plain text")
    return value


def chosen(children: Sequence[Descriptor], platforms: Iterable[Platform]) -> tuple[Descriptor, ...]:
    """The entries for these platforms, in the order of the index.

    Each platform selects the first entry that matches it, as clients do. If no entry has a platform, all are selected: the index
    is no choice between platforms.
    """
    manifests = [child for child in children if child.is_manifest]
    if not any(child.platform for child in manifests):
        return tuple(manifests)
    first = (next((child for child in manifests if platform.matches(child.platform)), None) for platform in platforms)
    selected = {child.digest for child in first if child is not None}
    return tuple({child.digest: child for child in manifests if child.digest in selected}.values())
