"""Tags that belong to another manifest: cosign's signatures, attestations and SBOMs, and the fallback for referrers.

`sha256-<hex>.sig`, `.att`, `.sbom`: sigstore/cosign, documentation, signature storage. `sha256-<hex>`: OCI distribution-spec,
Referrers Tag Schema.
"""

import re
from typing import Final

from mirror.core.digest import Digest
from mirror.core.manifest import Manifest
from mirror.core.media import strip_parameters
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


# Layers of signatures, attestations and SBOMs: sigstore/cosign, specs/; notaryproject/specifications, signature-specification.md;
# in-toto; SPDX; CycloneDX. None is a layer that a runtime unpacks.
_ATTACHED_LAYERS: Final = (
    "application/vnd.dev.cosign.simplesigning.v1+json",
    "application/vnd.dev.sigstore.bundle",
    "application/vnd.dsse.envelope.v1+json",
    "application/vnd.in-toto+json",
    "application/jose+json",
    "application/cose",
    "application/vnd.cyclonedx",
    "application/vnd.syft+json",
    "application/spdx",
    "text/spdx",
    "spdx+",
)


def is_attachment(manifest: Manifest) -> bool:
    """Whether a manifest holds nothing but signatures, attestations and SBOMs, so that nobody can run it."""
    layers = [blob for blob in manifest.blobs if blob is not manifest.config]
    return bool(layers) and all(strip_parameters(layer.media_type).startswith(_ATTACHED_LAYERS) for layer in layers)
