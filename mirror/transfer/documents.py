"""What a bundle says of its images: an OCI image layout, or Docker's format of `docker save`.

OCI image-spec, image-layout.md; moby, image/tarexport.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mirror.core import media
from mirror.core.errors import InvalidInput, shortened
from mirror.core.manifest import Descriptor, parse_manifest
from mirror.core.names import ImageName
from mirror.transfer.entry_names import NO_NAME, EntryName, entry_name
from mirror.transfer.errors import InvalidBundle
from mirror.transfer.layout import DOCKER_FILE, INDEX_FILE, LAYOUT_FILE, MAX_IMAGES
from mirror.transfer.tar_reader import MAX_NAME

_VERSION: Final = "1.0.0"


@dataclass(frozen=True, slots=True)
class DockerImage:
    """An image in Docker's format without a manifest.

    Attributes:
        config: the name of the member with its configuration.
        layers: the names of the members with its layers, lowest layer first.
    """

    config: str
    layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BundledImage:
    """An image that a bundle names, or has without a name.

    Attributes:
        content: the descriptor of its manifest or index, or the parts of which a manifest is made.
        problem: why its name is none; None if there is no problem.
    """

    name: EntryName
    content: Descriptor | DockerImage
    problem: str | None = None


def read_images(documents: Mapping[str, bytes]) -> list[BundledImage]:
    """Return the images of a bundle, in its order.

    A bundle of both kinds is read as an OCI image layout, whose manifests are those of the registry.

    Raises:
        InvalidBundle: it is no bundle, or its documents are malformed.
    """
    _check_version(documents.get(LAYOUT_FILE))
    index, docker = documents.get(INDEX_FILE), documents.get(DOCKER_FILE)
    if index is not None:
        images = _layout_images(index)
    elif docker is not None:
        images = _docker_images(docker)
    else:
        raise InvalidBundle(f"it has neither {INDEX_FILE} nor {DOCKER_FILE}: it is no bundle of images")
    if not images:
        raise InvalidBundle("it has no image")
    if len(images) > MAX_IMAGES:
        raise InvalidBundle(f"it has more than {MAX_IMAGES} images")
    return images


def _check_version(document: bytes | None) -> None:
    if document is not None:
        layout = _load(document, LAYOUT_FILE)
        version = layout.get("imageLayoutVersion") if isinstance(layout, dict) else None
        if version != _VERSION:
            raise InvalidBundle(f"its layout has the version {shortened(version)}, and {_VERSION} is read", LAYOUT_FILE)


def _layout_images(document: bytes) -> list[BundledImage]:
    try:
        descriptors = parse_manifest(document, media.OCI_INDEX, None).children
    except InvalidInput as error:
        raise InvalidBundle(error.reason, INDEX_FILE) from error
    entries = _load(document, INDEX_FILE).get("manifests") or []
    return [_layout_image(descriptor, entry.get("annotations")) for descriptor, entry in zip(descriptors, entries, strict=True)]


def _layout_image(descriptor: Descriptor, annotations: object) -> BundledImage:
    try:
        return BundledImage(entry_name(annotations if isinstance(annotations, dict) else {}), descriptor)
    except InvalidInput as error:
        return BundledImage(NO_NAME, descriptor, str(error))


def _docker_images(document: bytes) -> list[BundledImage]:
    entries = _load(document, DOCKER_FILE)
    if not isinstance(entries, list):
        raise InvalidBundle("is no list", DOCKER_FILE)
    found = []
    for entry in entries:
        config, layers = (entry.get("Config"), entry.get("Layers")) if isinstance(entry, dict) else (None, None)
        if not isinstance(config, str) or not _is_name(config) or not _is_texts(layers):
            raise InvalidBundle("an image has no Config or no Layers", DOCKER_FILE)
        image, tags = DockerImage(config, tuple(layers or ())), entry.get("RepoTags") or []
        if not _is_texts(tags):
            raise InvalidBundle("RepoTags is no list of names", DOCKER_FILE)
        found += [_docker_image(tag, image) for tag in tags] or [BundledImage(NO_NAME, image)]
    return found


def _docker_image(tag: str, image: DockerImage) -> BundledImage:
    try:
        return BundledImage(EntryName(ImageName.parse(tag)), image)
    except InvalidInput as error:
        return BundledImage(NO_NAME, image, str(error))


def _is_texts(value: object) -> bool:
    """Whether a value is a list of names, or null, which Go writes for an empty list."""
    return value is None or (isinstance(value, list) and all(map(_is_name, value)))


def _is_name(value: object) -> bool:
    return isinstance(value, str) and len(value) <= MAX_NAME and value.isprintable()


def _load(document: bytes, name: str) -> Any:
    try:
        return json.loads(document)
    except (ValueError, RecursionError) as error:
        raise InvalidBundle("is no JSON", name) from error
