"""The names of objects. A version that does not understand the values of another one uses other names.

1/LAYOUT                            says what the bucket is for
1/blobs/ALGORITHM/<2 hex>/<hex>     a verified blob
1/manifests/ALGORITHM/<2 hex>/<hex> a verified manifest; its Content-Type is the media type
1/tags/SCOPE/REPOSITORY/TAG.json    what a tag named last
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

from mirror.core.digest import Digest
from mirror.core.errors import InvalidInput
from mirror.core.names import Repository, Tag

_LAYOUT: Final = "1"
LAYOUT_KEY: Final = f"{_LAYOUT}/LAYOUT"
LAYOUT: Final = b"registry-mirror objects, layout 1\n"
BLOBS: Final = f"{_LAYOUT}/blobs"
MANIFESTS: Final = f"{_LAYOUT}/manifests"
TAGS: Final = f"{_LAYOUT}/tags"
SCOPES: Final = "rm-scopes"
"""Metadata: the scopes of the registries without an account that have given this content to one of their repositories."""


def blob_key(digest: Digest) -> str:
    """Return the name of a blob."""
    return f"{BLOBS}/{_path(digest)}"


def manifest_key(digest: Digest) -> str:
    """Return the name of a manifest."""
    return f"{MANIFESTS}/{_path(digest)}"


def tag_key(scope: str, repository: Repository, tag: Tag) -> str:
    """Return the name of the record of a tag.

    Args:
        scope: of the registry; see `mirror.core.scope.scope_of`.
    """
    return f"{tags_of(scope, repository)}/{tag}.json"


def tags_of(scope: str, repository: Repository) -> str:
    """Return what the names of the records of a repository's tags begin with."""
    return f"{TAGS}/{quote(scope, safe='~')}/{repository.path}"


def digest_of(key: str) -> Digest | None:
    """Return the digest of the name of a blob or manifest; None if it is no such name."""
    algorithm, _, rest = key.removeprefix(f"{BLOBS}/").removeprefix(f"{MANIFESTS}/").partition("/")
    try:
        digest = Digest.parse(f"{algorithm}:{rest.partition('/')[2]}")
    except InvalidInput:
        return None
    return digest if key in (blob_key(digest), manifest_key(digest)) else None


def _path(digest: Digest) -> str:
    return f"{digest.algorithm}/{digest.encoded[:2]}/{digest.encoded}"
