"""What the fake holds: repositories with tags, manifests and blobs."""

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256

from .bodies import Body, Bytes, digest_of, synthetic

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


@dataclass(frozen=True)
class Blob:
    """Content by its digest; `size` in bytes."""

    digest: str
    size: int
    body: Body = field(repr=False)

    @property
    def data(self) -> bytes:
        return self.body.read(0, self.size)


@dataclass(frozen=True)
class Manifest:
    raw: bytes = field(repr=False)
    media_type: str


@dataclass(frozen=True)
class Image:
    """A tagged manifest. For an index, `config` and `layers` are those of the first child in `children`."""

    tag: str | None
    digest: str
    media_type: str
    raw: bytes = field(repr=False)
    config: Blob
    layers: list[Blob]
    children: "dict[str, Image]" = field(default_factory=dict)


@dataclass
class Repository:
    """`readers` are the users who may pull; None means everybody."""

    tags: dict[str, str] = field(default_factory=dict)
    manifests: dict[str, Manifest] = field(default_factory=dict)
    blobs: dict[str, Blob] = field(default_factory=dict)
    readers: set[str] | None = None


def layer(files: Mapping[str, bytes]) -> bytes:
    """A gzipped tar of these files, the same bytes for the same files."""
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755
            archive.addfile(entry, io.BytesIO(content))
    return gzip.compress(tar.getvalue(), compresslevel=1, mtime=0)


class Catalog:
    """Adds and moves content. Names are full ones: `library/nginx`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}

    def add_blob(self, repository: str, data: bytes) -> str:
        return self._hold(repository, _blob(data)).digest

    def add_synthetic_blob(self, repository: str, size: int, seed: int = 0) -> Blob:
        """A blob of `size` pseudo-random bytes that takes no memory."""
        body = synthetic(size, seed)
        return self._hold(repository, Blob(digest_of(body), size, body))

    def add_manifest(self, repository: str, raw: bytes, media_type: str, tag: str | None = None) -> str:
        digest = digest_of(raw)
        self._repository(repository).manifests[digest] = Manifest(raw, media_type)
        if tag is not None:
            self.move_tag(repository, tag, digest)
        return digest

    def add_image(
        self,
        repository: str,
        tag: str | None,
        layers: Sequence[bytes | Blob] | None = None,
        platforms: Sequence[str] | None = None,
        docker: bool = False,
    ) -> Image:
        """An image in OCI's media types or in Docker's, with an index if `platforms` are given.

        Without `layers` it has a small one that tells the repository and the tag: all images differ.
        Gzipped layers get a configuration that real clients accept.
        """
        if layers is None:
            layers = [layer({"etc/image": f"{repository}:{tag}".encode()})]
        blobs = [content if isinstance(content, Blob) else _blob(content) for content in layers]
        if platforms is None:
            return self._image(repository, tag, blobs, "linux/amd64", docker)
        children = {name: self._image(repository, None, blobs, name, docker) for name in platforms}
        return self._index(repository, tag, children, docker)

    def add_referrer(
        self,
        repository: str,
        subject: str,
        artifact_type: str = "application/vnd.example.signature",
        payload: bytes = b"{}",
        annotations: Mapping[str, str] | None = None,
    ) -> str:
        """An artifact about another manifest (OCI image-spec, `subject`); returns its digest."""
        held = self._repository(repository).manifests.get(subject)
        media_type, size = (held.media_type, len(held.raw)) if held else (OCI_MANIFEST, 0)
        config = self._hold(repository, _blob(b"{}"))
        content = self._hold(repository, _blob(payload))
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": artifact_type,
            "config": _descriptor(OCI_EMPTY, config.digest, config.size),
            "layers": [_descriptor(artifact_type, content.digest, content.size)],
            "subject": _descriptor(media_type, subject, size),
            "annotations": dict(annotations or {}),
        }
        return self.add_manifest(repository, _encode(manifest), OCI_MANIFEST)

    def move_tag(self, repository: str, tag: str, digest: str) -> None:
        self._repository(repository).tags[tag] = digest

    def delete_tag(self, repository: str, tag: str) -> None:
        del self.repositories[repository].tags[tag]

    def delete_manifest(self, repository: str, digest: str) -> None:
        """The manifest and the tags that name it."""
        held = self.repositories[repository]
        del held.manifests[digest]
        held.tags = {tag: named for tag, named in held.tags.items() if named != digest}

    def delete_blob(self, repository: str, digest: str) -> None:
        del self.repositories[repository].blobs[digest]

    def delete_repository(self, repository: str) -> None:
        del self.repositories[repository]

    def private(self, repository: str, users: Iterable[str]) -> None:
        """Let only these users pull from it."""
        self._repository(repository).readers = set(users)

    def _repository(self, name: str) -> Repository:
        return self.repositories.setdefault(name, Repository())

    def _hold(self, repository: str, blob: Blob) -> Blob:
        self._repository(repository).blobs[blob.digest] = blob
        return blob

    def _image(self, repository: str, tag: str | None, layers: list[Blob], platform: str, docker: bool) -> Image:
        system, architecture, *_ = platform.split("/")
        configuration = {
            "architecture": architecture,
            "os": system,
            "config": {"Cmd": ["/bin/true"], "Labels": {"image": f"{repository}:{tag}"}},
            "rootfs": {"type": "layers", "diff_ids": [_diff_id(blob) for blob in layers]},
        }
        config = self._hold(repository, _blob(_encode(configuration)))
        media_type = DOCKER_MANIFEST if docker else OCI_MANIFEST
        manifest = {
            "schemaVersion": 2,
            "mediaType": media_type,
            "config": _descriptor(DOCKER_CONFIG if docker else OCI_CONFIG, config.digest, config.size),
            "layers": [_descriptor(_layer_type(blob, docker), blob.digest, blob.size) for blob in layers],
        }
        for blob in layers:
            self._hold(repository, blob)
        raw = _encode(manifest)
        digest = self.add_manifest(repository, raw, media_type, tag)
        return Image(tag, digest, media_type, raw, config, layers)

    def _index(self, repository: str, tag: str | None, children: dict[str, Image], docker: bool) -> Image:
        media_type = DOCKER_LIST if docker else OCI_INDEX
        manifests = []
        for platform, child in children.items():
            system, architecture, *variant = platform.split("/")
            names = {"os": system, "architecture": architecture}
            if variant:
                names["variant"] = variant[0]
            entry = _descriptor(child.media_type, child.digest, len(child.raw))
            manifests.append({**entry, "platform": names})
        raw = _encode({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests})
        digest = self.add_manifest(repository, raw, media_type, tag)
        first = next(iter(children.values()))
        return Image(tag, digest, media_type, raw, first.config, first.layers, children)


def _blob(data: bytes) -> Blob:
    return Blob(digest_of(data), len(data), Bytes(data))


def _encode(value: object) -> bytes:
    # Indented as Docker Hub's are: whoever encodes the JSON anew gets another digest.
    return json.dumps(value, indent=3).encode()


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest, "size": size}


def _is_gzip(blob: Blob) -> bool:
    return blob.body.read(0, min(2, blob.size)) == b"\x1f\x8b"


def _diff_id(blob: Blob) -> str:
    return "sha256:" + sha256(gzip.decompress(blob.data)).hexdigest() if _is_gzip(blob) else blob.digest


def _layer_type(blob: Blob, docker: bool) -> str:
    if docker:
        return DOCKER_LAYER
    return OCI_LAYER + ("+gzip" if _is_gzip(blob) else "")
