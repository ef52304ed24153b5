"""What a bundle consists of: its lines of index.json and manifest.json, its blobs, and its length before it is written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from mirror.core.digest import Digest
from mirror.core.media import OCI_INDEX
from mirror.core.names import Reference, Repository, Tag
from mirror.transfer import tar_writer
from mirror.transfer.errors import InvalidBundle
from mirror.transfer.layout import (
    ATTACHED_NAME,
    BLOCK_BYTES,
    CONTAINERD_NAME,
    DOCKER_FILE,
    INDEX_FILE,
    LAYOUT,
    LAYOUT_FILE,
    LEFT_OUT,
    MAX_DOCUMENT_BYTES,
    MAX_IMAGES,
    MAX_MEMBERS,
    REF_NAME,
    blob_path,
)


@dataclass(frozen=True, slots=True)
class DockerImage:
    """What `docker load` needs of an image of one platform.

    Attributes:
        layers: in their order; one may occur several times.
    """

    config: Digest
    layers: tuple[Digest, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of index.json.

    Attributes:
        size: bytes of the manifest.
        is_attached: it is a signature or another referrer, and no image.
        left_out: see `layout.LEFT_OUT`.
        docker: None if `docker load` cannot take it.
    """

    repository: Repository
    reference: Reference
    digest: Digest
    media_type: str
    size: int
    is_attached: bool = False
    left_out: tuple[Digest, ...] = ()
    docker: DockerImage | None = None

    @property
    def name(self) -> str:
        """The whole name, with its registry."""
        return f"{self.repository}{':' if isinstance(self.reference, Tag) else '@'}{self.reference}"

    def row(self) -> dict[str, Any]:
        """Return its descriptor."""
        annotations = dict.fromkeys((ATTACHED_NAME,) if self.is_attached else (CONTAINERD_NAME, REF_NAME), self.name)
        if self.left_out:
            annotations[LEFT_OUT] = ",".join(map(str, self.left_out))
        return {
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size,
            "annotations": annotations,
        }


class BundledBlob(NamedTuple):
    """A manifest, config or layer.

    Attributes:
        size: bytes.
        image: the first one that needs it.
    """

    size: int
    image: str


@dataclass(slots=True)
class Bundle:
    """The content of a bundle. Entries with one name count once.

    Attributes:
        blobs: each manifest, config and layer, in the order in which they are written.
        content_bytes: of all blobs.
        documents: the files that follow the blobs, once it is finished: a bundle that was cut has none of them, and names no
            image.
    """

    blobs: dict[Digest, BundledBlob] = field(default_factory=dict)
    content_bytes: int = 0
    documents: tuple[tuple[str, bytes], ...] = ()
    _entries: dict[str, Entry] = field(default_factory=dict)

    def add(self, entry: Entry, blobs: Iterable[tuple[Digest, int]]) -> None:
        """Add an image, or what is attached to one, with the digests and sizes of its content."""
        self._entries.setdefault(entry.name, entry)
        for digest, size in blobs:
            if digest not in self.blobs:
                self.blobs[digest] = BundledBlob(size, entry.name)
                self.content_bytes += size

    def finish(self) -> int:
        """Make the documents, and return the bytes of the whole tar. Nothing may be added afterwards.

        It takes a second for the largest bundle, and belongs in a thread.

        Raises:
            InvalidBundle: no mirror would read it.
        """
        _require(len(self._entries), MAX_IMAGES, "images, signatures included")
        self.documents = tuple(self._made_documents())
        for name, data in self.documents:
            _require(len(data), MAX_DOCUMENT_BYTES, f"bytes in {name}")
        sizes = [(blob_path(digest), blob.size) for digest, blob in self.blobs.items()]
        sizes += [(name, len(data)) for name, data in self.documents]
        members = size = 0
        for name, length in sizes:
            header = len(tar_writer.header(name, length))
            members += 1 if header == BLOCK_BYTES else 2
            size += header + length + len(tar_writer.padding(length))
        _require(members, MAX_MEMBERS, "members")
        return size + len(tar_writer.END)

    def _made_documents(self) -> Iterator[tuple[str, bytes]]:
        entries = [self._entries[name] for name in sorted(self._entries)]
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry.row() for entry in entries]}
        yield LAYOUT_FILE, LAYOUT
        yield INDEX_FILE, _json(index)
        yield DOCKER_FILE, _json(list(_docker_rows(entries)))


def _require(count: int, most: int, what: str) -> None:
    if count > most:
        raise InvalidBundle(f"it would have {count} {what}, and at most {most} are read: export fewer images at a time")


def _docker_rows(entries: Sequence[Entry]) -> Iterator[dict[str, Any]]:
    """Yield the entries of manifest.json; an image with several tags is one (moby, image/tarexport/load.go).

    The names are whole: podman takes a short one for one of `localhost`.
    """
    tags: dict[DockerImage, list[str]] = {}
    for entry in entries:
        if entry.docker is not None:
            names = tags.setdefault(entry.docker, [])
            if isinstance(entry.reference, Tag):
                names.append(entry.name)
    for image, names in tags.items():
        yield {"Config": blob_path(image.config), "RepoTags": names, "Layers": [blob_path(layer) for layer in image.layers]}


def _json(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
