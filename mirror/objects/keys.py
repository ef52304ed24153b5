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
from mirror.core.names import Repository, Tag

_LAYOUT: Final = "1"
LAYOUT_KEY: Final = f"{_LAYOUT}/LAYOUT"
LAYOUT: Final = b"registry-mirror objects, layout 1\n"
SCOPES: Final = "rm-scopes"
"""Metadata: the scopes of the registries without an account that have given this content to one of their repositories."""


def blob_key(digest: Digest) -> str:
    """Return the name of a blob."""
    return f"{_LAYOUT}/blobs/{_path(digest)}"


def manifest_key(digest: Digest) -> str:
    """Return the name of a manifest."""
    return f"{_LAYOUT}/manifests/{_path(digest)}"


def tag_key(scope: str, repository: Repository, tag: Tag) -> str:
    """Return the name of the record of a tag.

    Args:
        scope: of the registry; see `mirror.core.scope.scope_of`.
    """
    return f"{_LAYOUT}/tags/{quote(scope, safe='~')}/{repository.path}/{tag}.json"


def _path(digest: Digest) -> str:
    return f"{digest.algorithm}/{digest.encoded[:2]}/{digest.encoded}"
