"""Tags that belong to another manifest: cosign's signatures, attestations and SBOMs, and the fallback for referrers.

`sha256-<hex>.sig`, `.att`, `.sbom`: sigstore/cosign, documentation, signature storage. `sha256-<hex>`: OCI distribution-spec,
Referrers Tag Schema.
"""

import re
from typing import Final

from mirror.core.digest import Digest
from mirror.core.names import Tag

_SUFFIXES: Final = ("", ".sig", ".att", ".sbom")
_TAG: Final = re.compile(r"sha256-([0-9a-f]{64})(?:\.(?:sig|att|sbom))?", re.ASCII)


def signature_tags(digest: Digest) -> tuple[Tag, ...]:
    """The tags under which a repository may have something about a manifest; the fallback for referrers comes first."""
    if digest.algorithm != "sha256":
        # The encoded part is cut to 64 characters: the subject of such a tag is unknown.
        return ()
    return tuple(Tag.parse(f"sha256-{digest.encoded}{suffix}") for suffix in _SUFFIXES)


def subject_of(tag: Tag) -> Digest | None:
    """The manifest that a tag is about, if it is one of those."""
    match = _TAG.fullmatch(tag.value)
    return None if match is None else Digest.parse(f"sha256:{match[1]}")
