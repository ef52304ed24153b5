"""Checks that an image is whole: everything that its manifests name is in the bundle or in the store, and has its digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from io import FileIO
from typing import Final

from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.manifest import MAX_MANIFEST_BYTES, Descriptor, Manifest, ManifestKind, parse_manifest
from mirror.core.names import Repository
from mirror.storage.blobs import BlobFiles
from mirror.storage.errors import storage_errors
from mirror.storage.images import is_complete
from mirror.storage.index import Index
from mirror.storage.parts import Part, parts_of
from mirror.storage.rows import Kind
from mirror.transfer.errors import ImageRefused
from mirror.transfer.receiver import BundleContent

MAX_MANIFESTS: Final = 1000
"""Manifests of one image, all platforms included."""

_MAX_DEPTH: Final = 4
_MAX_PARTS: Final = 50_000
_MAX_MANIFESTS_BYTES: Final = 64 << 20
# A cause names so many of the missing blobs.
_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class CheckedManifest:
    """A manifest of an image that is whole."""

    digest: Digest
    media_type: str
    size: int
    parts: tuple[Part, ...]


@dataclass(slots=True)
class CheckedImage:
    """An image that is whole.

    Attributes:
        manifests: those that are here, the parts of each before it; the image's own is the last.
        blobs: the size of each.
        platforms: of an index, those that are here.
        left_out: of an index, those that are not.
        subject: the manifest that it is about, if it is a referrer.
    """

    manifests: list[CheckedManifest] = field(default_factory=list)
    blobs: dict[Digest, int] = field(default_factory=dict)
    platforms: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    subject: Digest | None = None
    artifact_type: str | None = None

    @property
    def root(self) -> CheckedManifest:
        """The manifest that a tag names."""
        return self.manifests[-1]


class ImageCheck:
    """Checks the images of a bundle. Blocks on files; belongs in a thread.

    Args:
        content: what the bundle has, by digest.
        public: the registries that are used without an account.
    """

    def __init__(self, files: BlobFiles, index: Index, content: Mapping[Digest, BundleContent], public: frozenset[str]) -> None:
        self._files = files
        self._index = index
        self._content = content
        self._public = public

    def check(self, root: Descriptor, repository: Repository) -> CheckedImage:
        """Return what an image consists of.

        Raises:
            ImageRefused: it is not whole, or its content is wrong.
            StorageError: it cannot be read.
        """
        return _Walk(self, repository).image(root)

    def open(self, content: BundleContent) -> FileIO:
        """Open content of the bundle.

        Raises:
            ImageRefused: the store has evicted it since.
            StorageError: it cannot be opened.
        """
        if content.path is not None:
            with storage_errors(f"reading {content.member}"):
                return FileIO(content.path)
        held = self._files.open(content.digest)
        if held is None:
            raise ImageRefused(f"{content.digest} was evicted during the import")
        return held.file

    def find(self, digest: Digest) -> BundleContent | None:
        """Return content of the bundle."""
        return self._content.get(digest)

    def size_in_store(self, kind: Kind, repository: Repository, digest: Digest) -> int | None:
        """Return the size of content that the bundle leaves out; None if it is not here for this repository.

        Content that a registry with an account has given to other repositories only is not: a bundle may name a digest that
        nobody may read there.
        """
        grants, scopes = self._index.grants, (str(repository), *self._public)
        if all(grants.get(kind, scope, digest) is None for scope in scopes):
            return None
        return self._files.size(digest)

    def is_held(self, digest: Digest) -> bool:
        """Whether the store has content."""
        return self._files.size(digest) is not None

    def is_complete(self, digest: Digest) -> bool:
        """Whether the store has everything of a manifest."""
        return is_complete(self._files, digest)

    def read_held(self, digest: Digest) -> bytes | None:
        """Return a manifest from the store."""
        return self._files.read(digest, MAX_MANIFEST_BYTES)


class _Walk:
    """The walk through one image."""

    def __init__(self, check: ImageCheck, repository: Repository) -> None:
        self._check = check
        self._repository = repository
        self._found = CheckedImage()
        self._seen: set[Digest] = set()
        self._problems: list[str] = []
        self._parts = self._bytes = 0

    def image(self, root: Descriptor) -> CheckedImage:
        """Walk from a root; raises ImageRefused."""
        if not self._manifest(root, 0):
            raise ImageRefused(f"its manifest {root.digest} is neither in the bundle nor held")
        if self._problems:
            more = len(self._problems) - _NAMED
            raise ImageRefused("; ".join(self._problems[:_NAMED]) + (f"; and {more} more" if more > 0 else ""))
        return self._found

    def _manifest(self, descriptor: Descriptor, depth: int) -> bool:
        """Take in a manifest and what it names; False if it is left out."""
        if descriptor.digest in self._seen:
            return True
        raw = self._read(descriptor)
        if raw is None:
            return False
        self._seen.add(descriptor.digest)
        manifest = self._parsed(raw, descriptor)
        self._bound(manifest, depth)
        if manifest.kind is ManifestKind.INDEX:
            self._children(manifest, depth)
        for blob in manifest.blobs:
            if not blob.is_foreign:
                self._blob(blob)
        if depth == 0:
            self._found.subject = None if manifest.subject is None else manifest.subject.digest
            self._found.artifact_type = manifest.artifact_type or (manifest.config.media_type if manifest.config else None)
        checked = CheckedManifest(manifest.digest, manifest.media_type, len(raw), parts_of(manifest))
        self._found.manifests.append(checked)
        return True

    def _children(self, index: Manifest, depth: int) -> None:
        here = 0
        for child in index.children:
            if not child.is_manifest:
                self._blob(child)
                here += 1
                continue
            platform = str(child.platform or child.digest)
            if self._manifest(child, depth + 1):
                here += 1
                self._found.platforms.append(platform)
            else:
                self._found.left_out.append(platform)
        if index.children and not here:
            self._problems.append(f"none of the manifests that {index.digest} names is in the bundle")

    def _read(self, descriptor: Descriptor) -> bytes | None:
        """Return the bytes of a manifest; None if it is left out."""
        content, digest = self._check.find(descriptor.digest), descriptor.digest
        if content is None:
            held = self._check.size_in_store("manifest", self._repository, digest)
            return None if held is None or not self._check.is_complete(digest) else self._check.read_held(digest)
        if content.damage is not None:
            raise ImageRefused(f"{content.member} is damaged: {content.damage}")
        if content.size != descriptor.size or content.size > MAX_MANIFEST_BYTES:
            raise ImageRefused(f"{content.member} has {content.size} bytes, and its descriptor says {descriptor.size}")
        with self._check.open(content) as file, storage_errors(f"reading {content.member}"):
            return file.readall()

    def _parsed(self, raw: bytes, descriptor: Descriptor) -> Manifest:
        try:
            manifest = parse_manifest(raw, descriptor.media_type or None, descriptor.digest)
        except InvalidInput as error:
            raise ImageRefused(f"its manifest {descriptor.digest} is invalid: {error.reason}") from error
        if manifest.kind is ManifestKind.SCHEMA1:
            raise ImageRefused(f"its manifest {descriptor.digest} is of schema 1, whose bytes nothing verifies")
        return manifest

    def _bound(self, manifest: Manifest, depth: int) -> None:
        self._parts += len(manifest.children) + len(manifest.blobs)
        self._bytes += len(manifest.raw)
        if depth > _MAX_DEPTH:
            raise ImageRefused(f"its indexes are nested more than {_MAX_DEPTH} deep")
        if len(self._seen) > MAX_MANIFESTS or self._parts > _MAX_PARTS or self._bytes > _MAX_MANIFESTS_BYTES:
            raise ImageRefused(f"it has more than {MAX_MANIFESTS} manifests, or they are too long")

    def _blob(self, blob: Descriptor) -> None:
        if blob.digest in self._found.blobs:
            return
        content = self._check.find(blob.digest)
        if content is None:
            size = self._check.size_in_store("blob", self._repository, blob.digest)
            if size is None:
                self._problems.append(f"{blob.digest} is neither in the bundle nor held")
                return
        elif content.damage is not None:
            self._problems.append(f"{content.member} is damaged: {content.damage}")
            return
        elif content.path is None and not self._check.is_held(blob.digest):
            self._problems.append(f"{blob.digest} was evicted during the import")
            return
        else:
            size = content.size
        if size != blob.size:
            self._problems.append(f"{blob.digest} has {size} bytes, and its manifest says {blob.size}")
            return
        self._found.blobs[blob.digest] = size
