"""The names, digests, paths and bodies that tests use."""

from __future__ import annotations

import hashlib
import random
from typing import Any

from mirror.core.names import Repository, Tag

KIB = 1 << 10
MIB = 1 << 20
DAY = 86400.0
HEX = "a" * 64
APP = "library/app"
# A digest that nothing has.
ABSENT = f"sha256:{'0' * 64}"


def manifest_path(reference: object, repository: str = APP) -> str:
    """The path of a manifest by its tag or digest (OCI distribution-spec, Pulling manifests)."""
    return f"/v2/{repository}/manifests/{reference}"


def blob_path(digest: object, repository: str = APP) -> str:
    """The path of a blob; anything with a `digest` will do (OCI distribution-spec, Pulling blobs)."""
    return f"/v2/{repository}/blobs/{getattr(digest, 'digest', digest)}"


# The tag that most tests pull.
TAG = manifest_path("1")


def tag_name(tag: str, repository: str = APP) -> tuple[Repository, Tag]:
    """What the index knows a tag of Docker Hub by."""
    return Repository.parse("docker.io", repository), Tag.parse(tag)


def sha256(data: bytes) -> str:
    """The digest of bytes, as text."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def content(size: int, seed: Any = 1) -> bytes:
    """Bytes that are the same for the same seed and different in every chunk."""
    return random.Random(seed).randbytes(size)
