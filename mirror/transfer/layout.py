"""The names inside a bundle: an OCI image layout, and beside it what `docker load` reads.

A bundle of this mirror has its blobs first, then `oci-layout`, `index.json` and `manifest.json`, so that one that was cut names
no image. Others write their members in any order. The limits hold for a bundle that is read, and for one that is written.

OCI image-spec, image-layout.md and annotations.md; containerd, core/images/annotations.go; moby, image/tarexport.
"""

from __future__ import annotations

import json
from typing import Final

from mirror.core.digest import Digest
from mirror.core.errors import InvalidDigest

LAYOUT_FILE: Final = "oci-layout"
LAYOUT: Final = json.dumps({"imageLayoutVersion": "1.0.0"}).encode()
"""The content of LAYOUT_FILE."""

INDEX_FILE: Final = "index.json"
DOCKER_FILE: Final = "manifest.json"

MAX_MEMBERS: Final = 50_000
"""Headers in one bundle, those of long names and pax records included. Three thousand images have fewer."""

MAX_IMAGES: Final = 10_000
"""Entries of `index.json`, those of signatures included, or images of `manifest.json`."""

MAX_DOCUMENT_BYTES: Final = 4 << 20
"""Bytes of `index.json`, of `manifest.json`, and of other documents that are read whole; as of a manifest."""

BLOCK_BYTES: Final = 512
"""The size of a block of a tar (POSIX.1-1988, ustar)."""

CONTAINERD_NAME: Final = "io.containerd.image.name"
"""The annotation of index.json with the whole name of an image, as containerd and Docker read it."""

REF_NAME: Final = "org.opencontainers.image.ref.name"
"""The annotation by which OCI tools find an image; in a bundle of this mirror its whole name, elsewhere often its tag alone."""

ATTACHED_NAME: Final = "io.registry-mirror.attached.name"
"""The annotation with the name of a signature or another referrer, as `REGISTRY/REPOSITORY:TAG` or with `@DIGEST`.

It has neither of the other names: Docker and containerd make an image of every entry with one.
"""

LEFT_OUT: Final = "io.registry-mirror.left-out"
"""The annotation with the digests that an image needs and its bundle leaves out, separated by commas.

They are manifests of platforms that were not asked for, and blobs of an earlier bundle.
"""

_BLOBS: Final = "blobs"


def blob_path(digest: Digest) -> str:
    """Return the name of the member with the bytes of a digest."""
    return f"{_BLOBS}/{digest.algorithm}/{digest.encoded}"


def blob_digest(path: str) -> Digest | None:
    """Return the digest that a member's name states; None if it is not the name of a blob."""
    directory, _, rest = path.partition("/")
    algorithm, slash, encoded = rest.partition("/")
    if directory != _BLOBS or not slash:
        return None
    try:
        return Digest.parse(f"{algorithm}:{encoded}")
    except InvalidDigest:
        return None
