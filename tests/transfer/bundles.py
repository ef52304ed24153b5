"""Bundles as bytes, as tools write them, and as attackers would."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from typing import Any

from tests.support.names import sha256

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
NAME = "io.containerd.image.name"
REF = "org.opencontainers.image.ref.name"
ATTACHED = "io.registry-mirror.attached.name"


class Tar:
    """Writes a tar; a header can be whatever the caller wants."""

    def __init__(self, layout: int = tarfile.USTAR_FORMAT) -> None:
        self._bytes = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._bytes, mode="w", format=layout)

    def add(self, name: str, data: bytes = b"", **fields: Any) -> Tar:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        for field, value in fields.items():
            setattr(info, field, value)
        self._tar.addfile(info, io.BytesIO(data))
        return self

    def close(self) -> bytes:
        self._tar.close()
        return self._bytes.getvalue()


def header(name: str, size: bytes = b"00000000000", kind: bytes = b"0") -> bytes:
    """A header of 512 bytes with a right checksum, whatever else is in it."""
    block = bytearray(512)
    block[: len(name)] = name.encode()
    block[100:107] = b"0000644"
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


def descriptor(data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": sha256(data), "size": len(data), **more}


class Image:
    """An image of one platform in an OCI layout."""

    def __init__(self, *layers: bytes, architecture: str = "amd64", **manifest: Any) -> None:
        self.layers = [gzip.compress(layer, mtime=0) for layer in layers or (b"layer",)]
        self.config = dumped(
            {
                "architecture": architecture,
                "os": "linux",
                "rootfs": {"type": "layers", "diff_ids": [sha256(one) for one in layers]},
            }
        )
        self.raw = dumped(
            {
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": descriptor(self.config, OCI_CONFIG),
                "layers": [descriptor(layer, OCI_LAYER) for layer in self.layers],
                **manifest,
            }
        )
        self.digest = sha256(self.raw)
        self.platform = {"os": "linux", "architecture": architecture}

    @property
    def blobs(self) -> list[bytes]:
        return [self.config, *self.layers]

    def descriptor(self, **more: Any) -> dict[str, Any]:
        return descriptor(self.raw, OCI_MANIFEST, **more)


class Index:
    """An index of images."""

    def __init__(self, *images: Image) -> None:
        self.images = images
        entries = [image.descriptor(platform=image.platform) for image in images]
        self.raw = dumped({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries})
        self.digest = sha256(self.raw)

    def descriptor(self, **more: Any) -> dict[str, Any]:
        return descriptor(self.raw, OCI_INDEX, **more)


def named(root: Image | Index, name: str) -> dict[str, Any]:
    """An entry of index.json with a whole name, as containerd and Docker write it."""
    return root.descriptor(annotations={NAME: name, REF: name.rpartition(":")[2]})


def contents(*roots: Image | Index) -> list[bytes]:
    """Everything of images, manifests last."""
    found: list[bytes] = []
    for root in roots:
        for image in root.images if isinstance(root, Index) else (root,):
            found += [*image.blobs, image.raw]
        if isinstance(root, Index):
            found.append(root.raw)
    return list(dict.fromkeys(found))


def layout(entries: list[dict[str, Any]], blobs: list[bytes], *, index_first: bool = False) -> bytes:
    """An OCI image layout as a tar."""
    tar, documents = Tar(), [("oci-layout", dumped({"imageLayoutVersion": "1.0.0"}))]
    documents.append(("index.json", dumped({"schemaVersion": 2, "manifests": entries})))
    members = [(f"blobs/sha256/{sha256(blob)[7:]}", blob) for blob in blobs]
    for name, data in [*documents, *members] if index_first else [*members, *documents]:
        tar.add(name, data)
    return tar.close()


def bundle(name: str, root: Image | Index) -> bytes:
    """A bundle of one image."""
    return layout([named(root, name)], contents(root))


def docker_save(*tags: str, layers: tuple[bytes, ...] = (b"one", b"two"), **changes: Any) -> bytes:
    """What `docker save` of Docker 20.10 writes: layers first, manifest.json last, and links for repeated layers."""
    tar, seen, paths = Tar(), {}, []
    for number, layer in enumerate(layers):
        folder = sha256(b"id %d" % number)[7:]
        tar.add(f"{folder}/", type=tarfile.DIRTYPE)
        tar.add(f"{folder}/VERSION", b"1.0").add(f"{folder}/json", b"{}")
        if layer in seen:
            tar.add(f"{folder}/layer.tar", type=tarfile.SYMTYPE, linkname=f"../{seen[layer]}/layer.tar")
        else:
            tar.add(f"{folder}/layer.tar", layer)
        seen.setdefault(layer, folder)
        paths.append(f"{folder}/layer.tar")
    diff_ids = changes.get("diff_ids") or [sha256(layer) for layer in layers]
    config = dumped({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": diff_ids}})
    name = f"{sha256(config)[7:]}.json"
    tar.add(name, changes.get("config", config))
    entry = {"Config": name, "RepoTags": list(tags) or None, "Layers": paths}
    tar.add("manifest.json", dumped([{**entry, **changes.get("entry", {})}])).add("repositories", b"{}")
    return tar.close()


def crane(tag: str, *layers: bytes) -> bytes:
    """What go-containerregistry writes (`crane pull`, kaniko): compressed layers by their own digest, and no manifest."""
    packed = [gzip.compress(layer, mtime=0) for layer in layers]
    config = dumped({"os": "linux", "architecture": "amd64", "rootfs": {"diff_ids": [sha256(layer) for layer in layers]}})
    names = [f"{sha256(layer)[7:]}.tar.gz" for layer in packed]
    tar = Tar().add(sha256(config), config)
    for name, layer in dict(zip(names, packed, strict=True)).items():
        tar.add(name, layer)
    return tar.add("manifest.json", dumped([{"Config": sha256(config), "RepoTags": [tag], "Layers": names}])).close()
